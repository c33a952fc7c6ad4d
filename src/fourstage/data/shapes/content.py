"""What a message says: a string, or parts of text, reasoning, calls and results."""

from __future__ import annotations

from typing import Any

from fourstage.data.shapes.row import Malformed
from fourstage.data.shapes.tools import calls_text, result_text, thought_text
from fourstage.data.shapes.values import Columns, json_text, kind_of, string

SAID = ("content", "value", "message", "utterance", "text", "parts")
THOUGHT = ("reasoning_content", "reasoning", "thinking")
_TEXT = ("text", "input_text", "output_text", "refusal")
_CALL = ("tool_call", "tool_calls", "tool_use", "function_call")
_RESULT = ("tool_result", "tool_response", "observation")
_SEEN_OR_HEARD = ("image", "audio", "video", "file", "document")


def said(message: Columns) -> str:
    """The whole text of a message: its reasoning, its words and its calls.

    Raises:
        Malformed: it has no content, or other than text.
    """
    thought = next((string(message, key) for key in THOUGHT if key in message), "")
    calls = next((message[key] for key in ("tool_calls", "function_call") if message.get(key)), "")
    key = message.first(SAID)
    if key is None and not calls:
        raise Malformed("has no content")
    words = _words(message[key]) if key else ""
    if calls:
        words = _after(words, calls_text(calls))
    return words if "<think>" in words else thought_text(thought) + words


def result(message: Columns) -> str:
    """What a tool answered; an object is written as JSON.

    Raises:
        Malformed: it has no content, or other than text.
    """
    key = message.first(SAID)
    if key is None:
        raise Malformed("has no content")
    value = message[key]
    if isinstance(value, dict) or (isinstance(value, list) and not _are_parts(value)):
        return result_text(json_text(value))
    words = _words(value)
    return words if words.startswith("<tool_response>") else result_text(words)


def _are_parts(value: list[Any]) -> bool:
    return all(
        isinstance(part, str) or (isinstance(part, dict) and "type" in part) for part in value
    )


def _after(before: str, words: str) -> str:
    """`words` on a line of their own."""
    return f"{before}\n{words}" if before and not before.endswith("\n") else before + words


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise Malformed(f"has a content that is {kind_of(content)}: write a string")
    text, was_tagged = "", False
    for part in content:
        words, is_tagged = _part(part)
        text = _after(text, words) if is_tagged or was_tagged else text + words
        was_tagged = is_tagged
    return text.rstrip("\n") if text.endswith("</think>\n\n") else text


def _part(part: Any) -> tuple[str, bool]:
    """The text of one part, and whether it stands on lines of its own."""
    if isinstance(part, str):
        return part, False
    if not isinstance(part, dict):
        raise Malformed(f"has a part that is {kind_of(part)}: write text")
    columns = Columns(part)
    kind = string(columns, "type") or next(
        (key for key in (*_TEXT, "content", "value", *_SEEN_OR_HEARD) if key in columns), "no"
    )
    if kind in _TEXT or kind in ("content", "value"):
        return _string_in(columns, kind, (kind, "text", "value", "content")), False
    if kind in THOUGHT:
        return thought_text(_string_in(columns, kind, ("value", "text", *THOUGHT))), False
    if kind in _CALL:
        inner = columns.first(("value", "function", kind))
        return calls_text(columns[inner] if inner else part), True
    if kind in _RESULT:
        return result(columns), True
    named = next((name for name in _SEEN_OR_HEARD if name in kind), None)
    raise Malformed(
        f"has a part of type {kind!r}: write text"
        if named is None
        else f"has a part that is no text but {kind!r}: leave the row out"
    )


def _string_in(columns: Columns, kind: str, names: tuple[str, ...]) -> str:
    name = columns.first(names)
    if name is None:
        raise Malformed(f"has a part of type {kind!r} without text")
    return string(columns, name)
