"""Lists of messages as turns, in every form that conversations are written in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fourstage.data.shapes.content import SAID, result, said
from fourstage.data.shapes.row import Malformed
from fourstage.data.shapes.tools import calls_text
from fourstage.data.shapes.values import Columns, is_lines, kind_of, number, string, unpacked
from fourstage.errors import nearest
from fourstage.tasks import Messages

ROLE_KEYS = ("role", "from", "speaker", "sender")
_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "bot", "model", "chatbot", "chatgpt", "ai"),
    "call": ("function_call", "tool_call"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response", "ipython"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
# The two sides of a turn that is written as one object.
_ASKING = ("human", "user", "prompt", "question", "instruction", "input", "query")
_ANSWERING = ("assistant", "gpt", "bot", "response", "answer", "output")
_WEIGHTS = ("loss_weight", "weight", "train", "training")


@dataclass(frozen=True)
class Turn:
    """One message; the roles are those of the chat format.

    Attributes:
        is_trained: whether an answer is trained on; False for what is no answer.
    """

    role: str
    content: str
    is_trained: bool = False


def user(content: str) -> Turn:
    return Turn("user", content)


def assistant(content: str) -> Turn:
    return Turn("assistant", content, is_trained=True)


def as_messages(turns: Sequence[Turn]) -> Messages:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def is_conversation(value: Any) -> bool:
    """Whether a value, or the JSON that a table wrote it as, is a list of messages with roles."""
    value = unpacked(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and any(key in item for key in ROLE_KEYS) for item in value)
    )


def read_turns(value: Any, key: str) -> list[Turn]:
    """The turns of a list of messages.

    Messages without roles, and strings, are of user and assistant in turn. Empty messages of the
    system are left out; neighbouring results of tools are one turn.

    Args:
        key: where the list stands, in quotes, for messages.

    Raises:
        Malformed: no list, or a message without role or content.
    """
    value = unpacked(value)
    if not isinstance(value, list) or not value:
        words = "is empty" if value == [] else f"is {kind_of(value)}, not a list of messages"
        raise Malformed(f"{key} {words}")
    if is_lines(value):
        return _alternating(value)
    columns = [_object(item, number) for number, item in enumerate(value, 1)]
    if all(each.first(ROLE_KEYS) is None for each in columns):
        if all(each.first(("message", "utterance")) is not None for each in columns):
            return _alternating([said(each) for each in columns])
        if all(each.first(_ASKING) and each.first(_ANSWERING) for each in columns):
            return [turn for each in columns for turn in _both_sides(each)]
    turns: list[Turn] = []
    for number_, each in enumerate(columns, 1):
        _add(turns, _turn(each, number_))
    return turns


def shape_of(value: Any) -> str:
    """What a list of messages is known as: ShareGPT's say whom they are `from`."""
    value = unpacked(value)
    first = value[0] if isinstance(value, list) and value else None
    return "sharegpt" if isinstance(first, dict) and "from" in first else "messages"


def _object(item: Any, number: int) -> Columns:
    if not isinstance(item, dict):
        raise Malformed(
            f"message {number} is {kind_of(item)}: write an object with role and content"
        )
    return Columns(item)


def _alternating(said_in_turn: Sequence[str]) -> list[Turn]:
    turns = []
    for index, words in enumerate(said_in_turn):
        turns.append(assistant(words) if index % 2 else user(words))
        _check(turns[-1], index + 1)
    return turns


def _both_sides(columns: Columns) -> Iterator[Turn]:
    asking, answering = columns.first(_ASKING), columns.first(_ANSWERING)
    yield user(string(columns, str(asking)))
    yield assistant(string(columns, str(answering)))


def _turn(message: Columns, number: int) -> Turn:
    role = _role(message, number)
    try:
        if role == "tool":
            return user(result(message))
        if role == "call":
            key = message.first(SAID)
            return Turn("assistant", calls_text(message[key]) if key else said(message), True)
        content = said(message)
    except Malformed as fault:
        raise Malformed(f"message {number} ({role}) {fault}") from None
    turn = Turn(role, content, role == "assistant" and _counts(message))
    _check(turn, number)
    return turn


def _role(message: Columns, number: int) -> str:
    key = message.first(ROLE_KEYS)
    if key is None:
        raise Malformed(f"message {number} has no role: write system, user or assistant")
    name = string(message, key).strip().lower()
    if name not in _ROLE_OF:
        hint = nearest(name, _ROLE_OF) or "; write system, user, assistant or tool"
        raise Malformed(f"message {number} has the role {name!r}, which is not known{hint}")
    return _ROLE_OF[name]


def _counts(message: Columns) -> bool:
    """Whether an answer is trained on: its weight is not 0."""
    key = message.first(_WEIGHTS)
    if key is None:
        return True
    if isinstance(message[key], bool):
        return message[key]
    weight = number(message[key])
    return weight is None or weight > 0


def _check(turn: Turn, number: int) -> None:
    if turn.role != "system" and not turn.content.strip():
        raise Malformed(f"message {number} ({turn.role}) is empty")


def _add(turns: list[Turn], turn: Turn) -> None:
    is_result = turn.role == "user" and turn.content.startswith("<tool_response>")
    if turn.role == "system" and not turn.content.strip():
        return
    if is_result and turns and turns[-1].content.startswith("<tool_response>"):
        turns[-1] = user(f"{turns[-1].content}\n{turn.content}")
        return
    turns.append(turn)
