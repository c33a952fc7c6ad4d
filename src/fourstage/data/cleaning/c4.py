"""Rules of C4 on lines and pages, and their counterparts for scripts without spaces.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", section 2.2; with the rules of its code that the paper leaves out, as in datatrove.
The rule on the ends of lines is a step of its own: `terminal` and then `c4` is the paper's set,
`c4` alone is what FineWeb found to keep better text (Penedo et al. 2024, section 3.5).
"""

from __future__ import annotations

import re

from fourstage.data.cleaning.features import UNSPACED, Features
from fourstage.data.cleaning.verdict import KEPT, Verdict

LEAST_SENTENCES = 5
LEAST_WORDS = 3
# Chinese headings and ingredients have two characters; five, which say about as much as three
# words, would leave out a third of the lines of a cookbook.
LEAST_CHARACTERS = 2
LONGEST_WORD = 1000
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_ENDS = (".", "?", "!", '"', "'")
_ENDS_UNSPACED = tuple("。！？；…”’」』）》.?!\"'")
_ELLIPSIS = "..."
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_POLICIES_UNSPACED = (
    "使用条款",
    "使用條款",
    "隐私政策",
    "隱私政策",
    "隐私权政策",
    "用户协议",
    "服务条款",
)
# Where a sentence ends within a line: behind its mark something follows. Points after single
# capitals and frequent abbreviations end none; before a small letter or digit they are in a word.
_ABBREVIATIONS = (
    "Mr",
    "Dr",
    "Mrs",
    "Ms",
    "St",
    "Jr",
    "Inc",
    "Ltd",
    "Co",
    "vs",
    "e.g",
    "i.e",
    "a.m",
    "p.m",
)
_NOT_ABBREVIATED = "".join(rf"(?<!\b{re.escape(word)}\.)" for word in _ABBREVIATIONS)
_SENTENCE_END = re.compile(
    rf"[.!?。！？](?:(?<!\.)|(?:(?<=[\sa-z0-9%)\]\"'”’]\.)|(?<=[A-Z]{{2}}\.)){_NOT_ABBREVIATED}(?![a-z\d/]))"
    r"(?=\W{0,20}\w)"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")


def terminal(features: Features) -> Verdict:
    """Leaves out lines that do not end in a mark that ends a sentence, or end in an ellipsis."""
    kept = [line for line in features.lines if _is_terminated(line, features.is_unspaced)]
    return _edited(features, kept)


def c4(features: Features) -> Verdict:
    """Leaves out lines that hardly are sentences; drops pages with few of them.

    Lines of fewer than three words, with a word of more than 1,000 characters, on JavaScript or on
    policies are left out, citations such as "[3]" cut out. Pages are dropped for "lorem ipsum", for
    a curly bracket, and for fewer than five sentences.
    """
    kept: list[str] = []
    sentences = 0
    for raw in features.lines:
        line = raw.strip()
        words = line.split()
        if not features.is_unspaced and _holds_long_word(line, words):
            continue
        if "[" in line:
            line = _CITATION.sub("", line)
        if len(words) < LEAST_WORDS and _is_short(line, features.is_unspaced):
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return Verdict("lorem_ipsum", "holds it")
        if "javascript" in lower:
            continue
        if "{" in line:
            return Verdict("curly_bracket", line[:80])
        if any(policy in lower for policy in _POLICIES):
            continue
        if features.is_unspaced and any(policy in line for policy in _POLICIES_UNSPACED):
            continue
        if sentences < LEAST_SENTENCES:
            sentences += count_sentences(line)
        kept.append(line)
    if sentences < LEAST_SENTENCES:
        return Verdict("sentences", f"{sentences} < {LEAST_SENTENCES}")
    return _edited(features, kept)


def count_sentences(line: str) -> int:
    """Sentences of a line that is not blank; at least one."""
    return 1 + len(_SENTENCE_END.findall(line))


def _holds_long_word(line: str, words: list[str]) -> bool:
    return len(line) > LONGEST_WORD and max(map(len, words)) > LONGEST_WORD


def _is_terminated(line: str, unspaced: bool) -> bool:
    line = line.strip()
    if "[" in line:
        line = _CITATION.sub("", line)
    if unspaced:
        return line.endswith(_ENDS_UNSPACED)
    return line.endswith(_ENDS) and not line.endswith(_ELLIPSIS)


def _is_short(line: str, unspaced: bool) -> bool:
    return not unspaced or len(_UNSPACED.findall(line)) < LEAST_CHARACTERS


def _edited(features: Features, kept: list[str]) -> Verdict:
    if kept == features.lines:
        return KEPT
    text = "\n".join(kept).strip()
    if not text:
        return Verdict("nothing_left", f"0 of {len(features.lines)} lines")
    written = sum(1 for line in features.lines if line.strip())
    removed = written - sum(1 for line in kept if line)
    return Verdict(text=text, edits={"lines": removed} if removed else {"spaces": 1})
