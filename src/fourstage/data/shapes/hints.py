"""Rows with unknown keys: which keys they have, and the line of a recipe that would map them."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator
from typing import Any

from fourstage.data.shapes.turns import is_conversation
from fourstage.data.shapes.values import Columns, is_lines, kind_of, unpacked

FORMS = (
    "text | messages | conversations | prompt + completion (or response) | instruction + output | "
    "question + answer | prompt + chosen + rejected | prompt + responses + scores | prompt"
)
_SHOWN = 8
# What keys are called that mean ours; a key's words are compared, so `user_question` is one.
_ASKING = {
    *("q", "question", "questions", "ask", "asked", "prompt", "prompts", "query", "instruction"),
    *("instruct", "request", "problem", "task", "ques", "问题", "问", "提问", "指令", "题目"),
}
_ANSWERING = {
    *("a", "answer", "answers", "ans", "reply", "response", "completion", "output", "solution"),
    *("target", "resp", "回答", "答案", "答", "回复", "输出"),
}
_BETTER = {"better", "chosen", "good", "positive", "pos", "win", "accepted", "preferred", "best"}
_WORSE = {"worse", "rejected", "bad", "negative", "neg", "lose", "dispreferred", "worst"}
_TEXTS = {"text", "texts", "content", "contents", "body", "article", "story", "document", "文本"}


def unknown(columns: Columns) -> str:
    """Why a row is none of the known forms, and what to write where that can be guessed."""
    keys = [str(key) for key in columns.written_keys()]
    have = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
    if not keys:
        return f"an object without keys is none of: {FORMS}"
    words = f"keys {have} are none of: {FORMS}"
    if not columns.written_items():
        return f"all values are null; {words}"
    mapped = " ".join(
        _argument(f"data.map.{ours}={theirs}") for ours, theirs in _guess(columns.written_items())
    )
    if mapped:
        return f"{words}; if they are the same under other names, write {mapped}"
    kinds = ", ".join(f"{key} is {kind_of(value)}" for key, value in columns.written_items()[:3])
    return f"{words}; there is no text among them ({kinds})"


def _argument(setting: str) -> str:
    """A setting as a shell takes it; letters of any language need no quotes."""
    return setting if re.fullmatch(r"[\w.=-]+", setting) else shlex.quote(setting)


def _guess(items: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Our names with theirs, by what the values are and what the keys are called."""
    for key, value in items:
        if is_conversation(value):
            return [("messages", key)]
    written = {key: value for key, value in items if _is_text(value)}
    asking, better, worse, answering = (
        _named(written, words) for words in (_ASKING, _BETTER, _WORSE, _ANSWERING)
    )
    if better and worse:
        return [*([("prompt", asking)] if asking else []), ("chosen", better), ("rejected", worse)]
    if asking and answering and asking != answering:
        return [("question", asking), ("answer", answering)]
    if not written:
        return []
    named = _named(written, _TEXTS)
    longest = max(written, key=lambda key: len("".join(written[key])))
    if named is None and asking:
        return [("prompt", asking)]
    return [("text", named or longest)]


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip()) and not isinstance(unpacked(value), (list, dict))
    return is_lines(value) and bool(value)


def _named(written: dict[str, Any], names: set[str]) -> str | None:
    """The first key one of whose words is among `names`, or nearly so."""
    for key in written:
        if any(word in names for word in _words(key)):
            return key
    ordered = sorted(name for name in names if len(name) > 3)
    for key in written:
        if any(difflib.get_close_matches(word, ordered, n=1, cutoff=0.8) for word in _words(key)):
            return key
    return None


def _words(key: str) -> Iterator[str]:
    """A key as a whole, then its words: `userQuestion` and `user_question` have two."""
    yield key.lower()
    yield from (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+", key))
