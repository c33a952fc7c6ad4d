"""Checkers of tasks that were made from a person's own text, and of a person's own prompts.

Gold is half what was asked for, half manners: a length in bounds, words the corpus knows, nothing
copied from the prompt, nothing repeated, an end that is one.
"""

from __future__ import annotations

import re
from collections import Counter

from fourstage.data.words import HAN, ngrams, recall, words_of
from fourstage.tasks import Task

KINDS = ("continue", "words", "begin", "choose")
_ENDED = re.compile(r"[.!?…。！？；][\"'”’)\]」』）]*$")
# What success asks of each manner; gold takes them as they are.
_BARS = {"length": 1.0, "known": 0.9, "fresh": 0.7, "varied": 0.8, "ended": 1.0}
_RIGHT_OVERLAP = 0.5
# A wrong answer that is at least one of those offered.
_OFFERED = 0.3


def success(task: Task, response: str) -> bool:
    """Whether the response does what was asked, with all manners above their bars."""
    response = response.strip()
    if task.kind == "choose":
        return _same(response, task.facts["answer"])
    if task.kind == "answer":
        return _overlap(task, response) >= _RIGHT_OVERLAP
    good = manners(task, response)
    return asked(task, response) == 1.0 and all(good[name] >= bar for name, bar in _BARS.items())


def gold(task: Task, response: str) -> float:
    """The quality of a response, in [0, 1]."""
    response = response.strip()
    if task.kind == "choose":
        if _same(response, task.facts["answer"]):
            return 1.0
        return _OFFERED if any(_same(response, word) for word in task.facts["offered"]) else 0.0
    if task.kind == "answer":
        return _overlap(task, response)
    if not response:
        return 0.0
    good = manners(task, response)
    return 0.5 * asked(task, response) + 0.5 * sum(good.values()) / len(good)


def best_gold(task: Task) -> float:
    """1: the passage a task was made from reaches it, or the reference answer."""
    return 1.0


def asked(task: Task, response: str) -> float:
    """How much of what this kind of task asks for is there, in [0, 1]."""
    facts = task.facts
    if task.kind == "words":
        have = words_of(response, facts["script"])
        joined = "".join(have)
        found = [(w in joined) if facts["script"] == HAN else (w in have) for w in facts["words"]]
        return sum(found) / len(found)
    if task.kind == "begin":
        wanted = words_of(facts["opening"], facts["script"])
        have = words_of(response, facts["script"])
        same = 0
        while same < min(len(wanted), len(have)) and wanted[same] == have[same]:
            same += 1
        # An opening alone is no passage.
        return same / len(wanted) if len(have) > len(wanted) else 0.0
    if task.kind == "continue":
        return float(bool(set(facts["subject"]) & set(words_of(response, facts["script"]))))
    return 1.0


def manners(task: Task, response: str) -> dict[str, float]:
    """Each manner in [0, 1]."""
    facts = task.facts
    script = facts["script"]
    words = words_of(response, script)
    return {
        "length": _in_bounds(len(response), facts["least"], facts["most"]),
        "known": _known(words, facts["vocabulary"]),
        "fresh": _fresh(words, task),
        "varied": _varied(words, script),
        "ended": float(bool(_ENDED.search(response))),
    }


def _in_bounds(length: int, least: int, most: int) -> float:
    if length < least:
        return length / least
    return 1.0 if length <= most else max(0.0, 1 - (length - most) / most)


def _known(words: list[str], vocabulary: str | None) -> float:
    """The share of words that the corpus has."""
    known = None if vocabulary is None else recall(vocabulary)
    return sum(known is None or w in known for w in words) / len(words) if words else 0.0


def _fresh(words: list[str], task: Task) -> float:
    """The share of the response's runs of words that are not in the given text."""
    script = task.facts["script"]
    size = 8 if script == HAN else 4
    given = set(ngrams(words_of(task.facts.get("given", ""), script), size))
    own = ngrams(words, size)
    return 1 - sum(run in given for run in own) / len(own) if own else 1.0


def _varied(words: list[str], script: str) -> float:
    """The share of distinct runs of words."""
    size = 4 if script == HAN else 3
    own = ngrams(words, size)
    return len(set(own)) / len(own) if own else float(bool(words))


def _same(response: str, answer: str) -> bool:
    return response.strip(" .,:;!?\"'“”‘’。，！？「」").lower() == answer.lower()


def _overlap(task: Task, response: str) -> float:
    """F1 of the words shared with the reference answer, as in SQuAD (Rajpurkar et al., 2016)."""
    script = task.facts["script"]
    have = Counter(words_of(response, script) or response.split())
    reference = task.facts["reference"]
    want = Counter(words_of(reference, script) or reference.split())
    shared = sum((have & want).values())
    return 2 * shared / (have.total() + want.total()) if shared else 0.0
