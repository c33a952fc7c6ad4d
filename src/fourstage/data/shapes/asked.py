"""What stands before an answer: system message, tools, history and prompt."""

from __future__ import annotations

from typing import Any

from fourstage.data.shapes.row import Malformed
from fourstage.data.shapes.tools import tools_text
from fourstage.data.shapes.transcripts import begins_transcript, read_transcript
from fourstage.data.shapes.turns import (
    ROLE_KEYS,
    Turn,
    assistant,
    is_conversation,
    read_turns,
    user,
)
from fourstage.data.shapes.values import (
    Columns,
    is_lines,
    kind_of,
    string,
    unpacked,
)

# In the order in which they count: a row may carry its prompt under several names.
ASKED = (
    *("prompt", "instruction", "question", "problem", "query", "inputs", "input"),
    "question_stem",
)
CONVERSATIONS = ("messages", "conversations")
# Names that conversations go by, and numbers and texts, too.
_PERHAPS = ("conversation", "dialogue", "dialog", "chat", "turns", "data")
SYSTEM = ("system", "system_prompt", "system_message")
# Rows that hold no prompt of their own, and what their prompt is called then.
LAST_RESORTS = ("context", "history", "user", "human", "info", "post")
# What a question is about stands before it, the input of an instruction after it.
_ABOUT = ("context", "passage", "body")
_INPUT = ("input", "context")


def conversation_key(columns: Columns) -> str | None:
    """The key of the row's list of messages."""
    return columns.first(CONVERSATIONS) or next(
        (name for name in _PERHAPS if name in columns and _may_be_turns(columns[name])), None
    )


def _may_be_turns(value: Any) -> bool:
    value = unpacked(value)
    if not isinstance(value, list) or not value:
        return False
    return (is_lines(value) and len(value) > 1) or all(isinstance(item, dict) for item in value)


def before(columns: Columns, *, resort: bool = True) -> list[Turn] | None:
    """The turns before an answer; None where nothing says what was asked.

    Args:
        resort: whether a context or history may stand for a prompt.

    Raises:
        Malformed: a value of the wrong kind, or a prompt that is empty.
    """
    asked = _asked(columns, resort)
    if asked is None:
        return None
    return introduced(columns, [*_earlier(columns), *asked])


def introduced(columns: Columns, turns: list[Turn]) -> list[Turn]:
    """Turns behind the system message and the tools of the row."""
    key = columns.first(SYSTEM)
    words = string(columns, key).strip() if key else ""
    if turns and turns[0].role == "system":
        # A conversation's own system message counts.
        words, turns = turns[0].content, turns[1:]
    tools = tools_text(columns.get("tools") or columns.get("functions"))
    words = "\n\n".join(part for part in (words, tools) if part)
    return [Turn("system", words), *turns] if words else turns


def prompt_turns(value: Any, key: str) -> list[Turn]:
    """A prompt that is a text, a transcript, one message or several.

    Raises:
        Malformed: it is something else, or empty.
    """
    if isinstance(value, dict) and any(name in value for name in ROLE_KEYS):
        value = [value]
    if isinstance(value, dict):
        # WebGPT's questions and summarize_from_feedback's posts lie in an object.
        inner = next(
            (name for name in ("full_text", "text", "post", "article") if value.get(name)), ""
        )
        value = value.get(inner, value)
    if isinstance(value, list) or is_conversation(value):
        return read_turns(value, key)
    if not isinstance(value, str):
        raise Malformed(f"{key} is {kind_of(value)}: write a string or a list of messages")
    if not value.strip():
        raise Malformed(f"{key} is empty")
    if begins_transcript(value):
        turns = read_transcript(value, key)
        return turns if turns[-1].content else turns[:-1]
    return [user(value)]


def _asked(columns: Columns, resort: bool) -> list[Turn] | None:
    key = columns.first(ASKED)
    if key is None:
        other = conversation_key(columns)
        key = other or (columns.first(LAST_RESORTS) if resort else None)
        return None if key is None else prompt_turns(columns[key], columns.written(key))
    if key in ("instruction", "prompt") and isinstance(columns[key], str):
        return prompt_turns(_with_input(columns, key), columns.written(key))
    if key in ("question", "query") and isinstance(columns[key], str):
        return prompt_turns(_with_subject(columns, key), columns.written(key))
    return prompt_turns(columns[key], columns.written(key))


def _with_input(columns: Columns, key: str) -> str:
    # Beside a prompt an `input` of another kind is some other column.
    names = _INPUT if key == "instruction" else ("input",) * isinstance(columns.get("input"), str)
    parts = [string(columns, key), *(string(columns, n) for n in names if n in columns)]
    return "\n".join(part for part in parts if part.strip())


def _with_subject(columns: Columns, key: str) -> str:
    question = string(columns, key)
    about = columns.first(_ABOUT)
    if about is None or not question.strip() or not isinstance(columns[about], str):
        return question
    # A problem told in two parts is one paragraph (SVAMP), a passage is one of its own.
    joint = " " if about == "body" else "\n"
    return joint.join(part for part in (columns[about].strip(), question) if part)


def _earlier(columns: Columns) -> list[Turn]:
    """The turns of `history`: a list of [asked, answered], or of messages."""
    value = unpacked(columns.get("history"))
    if not value or columns.first(ASKED) is None:
        return []
    if is_conversation(value):
        return read_turns(value, columns.written("history"))
    turns: list[Turn] = []
    for pair in value if isinstance(value, list) else [value]:
        if not is_lines(pair) or len(pair) != 2:
            raise Malformed(f"{columns.written('history')} is no list of [asked, answered]")
        turns += [user(pair[0]), assistant(pair[1])]
    return turns
