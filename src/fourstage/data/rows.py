"""Rows recognised by their keys: text, conversations, comparisons and prompts.

Understood are TRL's columns, alpaca, ShareGPT, HH-RLHF transcripts and question/answer rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fourstage.data.reading import RawRow, raise_faults
from fourstage.errors import nearest

Messages = list[dict[str, str]]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "observation": "user",
    "tool": "user",
    "function": "user",
    "function_response": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "function_call": "assistant",
}
_ANSWERS = ("completion", "response", "output", "answer")
# Names that a text goes by where its key is not `text`.
_LIKELY = ("paragraphs", "content", "body", "article", "story", "document")
_TURN = re.compile(r"\n\n(Human|Assistant):")
FORMS = (
    "text | messages | conversations | prompt + completion (or response) | instruction + output | "
    "question + answer | prompt + chosen + rejected | prompt"
)


class Malformed(ValueError):
    """A row that cannot be understood: the reason, without its place."""


@dataclass(frozen=True)
class Row:
    """A row that was understood.

    Attributes:
        kind: "text", "dialogue", "comparison" or "prompt"; "unusable" for a well-formed row that
            teaches nothing (two conversations that part ways before their last answers).
        text: of a text row.
        messages: the whole dialogue, or what stands before the answer(s).
        chosen, rejected: the two answers of a comparison.
        margin: by how much the chosen answer is better, where that is told.
    """

    kind: str
    where: str
    text: str = ""
    messages: Messages | None = None
    chosen: str = ""
    rejected: str = ""
    margin: float | None = None

    def as_text(self) -> str:
        """The row as plain text, for pretraining."""
        parts = [self.text, *(m["content"] for m in self.messages or []), self.chosen]
        return "\n".join(part for part in parts if part)

    def conversation(self, answer: str) -> Messages:
        return [*(self.messages or []), {"role": "assistant", "content": answer}]


def understand(raw: Iterable[RawRow], key: str | None = None) -> Iterator[Row]:
    """Rows by their keys; malformed ones are refused together, each with its file and line.

    Args:
        raw: JSON values with their places.
        key: the key of the text, for rows that have it.

    Raises:
        InputError: some rows are malformed.
    """
    faults = []
    for item in raw:
        try:
            yield recognise(item.value, item.where, key)
        except Malformed as fault:
            faults.append(f"{item.where}: {fault}")
    raise_faults(faults)


def recognise(value: Any, where: str, key: str | None = None) -> Row:
    """One row by its keys.

    Raises:
        Malformed: it has none of the known sets of keys, or a value of the wrong kind.
    """
    if isinstance(value, str):
        return Row("text", where, text=value)
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise Malformed(f"a row is an object with keys, this is a {kind}; known: {FORMS}")
    if key is not None and key in value:
        return Row("text", where, text=_text(value[key], key))
    for keys, reader in _READERS:
        if all(any(k in value for k in alternatives) for alternatives in keys):
            return reader(value, where)
    raise Malformed(_unknown(value, key))


def _unknown(value: dict[str, Any], key: str | None) -> str:
    have = ", ".join(map(str, list(value)[:8])) or "no keys"
    if key is not None:
        return f"no key {key!r} here{nearest(key, map(str, value))} (it has: {have})"
    written = [k for k, v in value.items() if isinstance(v, str) or _is_lines(v)]
    longest = max(written, key=lambda k: (k in _LIKELY, len("".join(value[k]))), default=None)
    hint = f"; if the text stands in {longest!r}, write data.key={longest}" if longest else ""
    return f"keys {have} are none of: {FORMS}{hint}"


def _is_lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


def _text(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if _is_lines(value):
        return "\n".join(value)
    raise Malformed(f"{key!r} is a {type(value).__name__}: write a string or a list of strings")


def _string(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise Malformed(f"{key!r} is a {type(found).__name__}: write a string")
    return found


def _content(content: Any) -> str:
    """A message's text: a string, or parts of which the textual ones count."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    raise Malformed("a message's content is not text: write a string")


def _part(part: Any) -> Any:
    if isinstance(part, dict):
        return part.get("text") or part.get("value")
    return part


def _message(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Malformed(f"a message is an object with role and content, not {value!r:.40}")
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or role not in _ROLES:
        have = "no role" if role is None else f"role {role!r}"
        raise Malformed(f"{have} in a message: write system, user or assistant")
    if "content" not in value and "value" not in value:
        raise Malformed("a message without content")
    return {"role": _ROLES[role], "content": _content(value.get("content", value.get("value")))}


def _messages(value: Any, key: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise Malformed(f"{key!r} is not a list of messages")
    return [_message(item) for item in value]


def _prompt(value: Any, key: str = "prompt") -> Messages:
    if isinstance(value, list):
        return _messages(value, key)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f"{key!r} is empty or not text")
    return [{"role": "user", "content": value}]


def _before(value: dict[str, Any]) -> Messages | None:
    """What stands before the answer: system, history and prompt; None when nothing says it."""
    messages: Messages = []
    if _string(value, "system"):
        messages.append({"role": "system", "content": value["system"]})
    for turn in _history(value.get("history") or []):
        messages += [{"role": role, "content": said} for role, said in turn]
    for key in ("prompt", "question"):
        if key in value:
            return messages + _prompt(value[key], key)
    for key in ("messages", "conversations"):
        if key in value:
            return messages + _messages(value[key], key)
    if "instruction" in value:
        parts = [_string(value, "instruction"), _string(value, "input")]
        return messages + _prompt("\n".join(part for part in parts if part), "instruction")
    return None


def _history(value: Any) -> Iterator[Iterable[tuple[str, str]]]:
    """Earlier turns of an alpaca row: a list of [asked, answered]."""
    for turn in value if isinstance(value, list) else [[]]:
        if not _is_lines(turn) or len(turn) != 2:
            raise Malformed("'history' is no list of [asked, answered]")
        yield zip(("user", "assistant"), turn, strict=True)


def _read_text(value: dict[str, Any], where: str) -> Row:
    return Row("text", where, text=_text(value["text"], "text"))


def _checked_dialogue(messages: Messages, where: str) -> Row:
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        if messages[-1]["role"] == "user":
            return Row("prompt", where, messages=messages)
        raise Malformed("a conversation without an answer of the assistant")
    # What follows the last answer trains nothing.
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    if last == 0:
        raise Malformed("a conversation that begins with the assistant's only answer")
    return Row("dialogue", where, messages=messages[: last + 1])


def _read_dialogue(value: dict[str, Any], where: str) -> Row:
    key = "messages" if "messages" in value else "conversations"
    messages = _messages(value[key], key)
    if _string(value, "system") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": value["system"]})
    return _checked_dialogue(messages, where)


def _read_answered(value: dict[str, Any], where: str) -> Row:
    key = next(k for k in _ANSWERS if k in value)
    messages = _before(value) or []
    answer = value[key]
    if isinstance(answer, list):
        return _checked_dialogue(messages + _messages(answer, key), where)
    if not isinstance(answer, str) or not answer.strip():
        raise Malformed(f"{key!r} is empty or not text")
    # Plain columns as TRL reads them: a completion often starts with the space after its prompt.
    answer = {"role": "assistant", "content": answer.strip()}
    return Row("dialogue", where, messages=[*messages, answer])


def _read_prompt(value: dict[str, Any], where: str) -> Row:
    messages = _before(value) or []
    if messages[-1]["role"] != "user":
        raise Malformed("a prompt ends with a message of the user")
    return Row("prompt", where, messages=messages)


def _transcript(text: str) -> Messages | None:
    """An HH-RLHF transcript as messages; None when it is none."""
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[role], "content": said.strip()} for role, said in turns]


def _read_comparison(value: dict[str, Any], where: str) -> Row:
    chosen, rejected = value["chosen"], value["rejected"]
    before = _before(value)
    chosen, rejected = ([side] if isinstance(side, dict) else side for side in (chosen, rejected))
    if type(chosen) is not type(rejected) or not isinstance(chosen, (str, list)):
        raise Malformed("'chosen' and 'rejected' are not both strings, or both lists of messages")
    if isinstance(chosen, str) and isinstance(rejected, str):
        before, chosen, rejected = _compared_strings(before, chosen, rejected)
    else:
        before, chosen, rejected = _compared_messages(
            before, _messages(chosen, "chosen"), _messages(rejected, "rejected")
        )
    if before is None:
        return Row("unusable", where)
    if not chosen.strip() and not rejected.strip():
        raise Malformed("'chosen' and 'rejected' are both empty")
    margin = _margin(value)
    return Row("comparison", where, "", before, chosen, rejected, margin)


def _margin(value: dict[str, Any]) -> float | None:
    if isinstance(value.get("margin"), (int, float)):
        return float(value["margin"])
    scores = [value.get("score_chosen"), value.get("score_rejected")]
    if all(isinstance(score, (int, float)) for score in scores):
        return float(value["score_chosen"]) - float(value["score_rejected"])
    return None


def _compared_strings(before: Messages | None, chosen: str, rejected: str) -> tuple:
    if before is not None:
        return before, chosen.strip(), rejected.strip()
    turns, others = _transcript(chosen), _transcript(rejected)
    if turns and others:
        return _compared_messages(None, turns, others)
    # TRL's implicit prompt: all that the two have in common, up to a word's end.
    same = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    same = max(chosen.rfind(" ", 0, same), chosen.rfind("\n", 0, same)) + 1
    if not chosen[:same].strip():
        raise Malformed("'chosen' and 'rejected' share no prompt: add the key 'prompt'")
    return _prompt(chosen[:same].strip()), chosen[same:].strip(), rejected[same:].strip()


def _compared_messages(before: Messages | None, chosen: Messages, rejected: Messages) -> tuple:
    """Splits two message lists after what they have in common; (None, "", "") where they cannot

    be compared because they part ways before the last answer.
    """
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if len(chosen) - same != 1 or len(rejected) - same != 1:
        return None, "", ""
    if any(side[-1]["role"] != "assistant" for side in (chosen, rejected)):
        raise Malformed("'chosen' and 'rejected' end with a message of the assistant")
    # Whole conversations repeat the prompt (UltraFeedback); lone answers do not.
    before = chosen[:same] or before
    if not before:
        raise Malformed("'chosen' and 'rejected' share no prompt: add the key 'prompt'")
    return before, chosen[-1]["content"], rejected[-1]["content"]


_ASKED = ("prompt", "instruction", "question")
_READERS: tuple[tuple[tuple[tuple[str, ...], ...], Callable[..., Row]], ...] = (
    ((("chosen",), ("rejected",)), _read_comparison),
    ((("messages", "conversations"),), _read_dialogue),
    ((_ASKED, _ANSWERS), _read_answered),
    ((("text",),), _read_text),
    ((_ASKED,), _read_prompt),
)


def refuse_kind(rows: Iterable[Row], wanted: tuple[str, ...], field: str) -> Iterator[Row]:
    """Passes rows of the wanted kinds (and unusable ones); others are a fault.

    Raises:
        InputError: rows of another kind.
    """
    needs = {
        "dialogue": "messages, conversations, prompt + completion or instruction + output",
        "comparison": "prompt + chosen + rejected",
        "prompt": "prompt",
    }
    faults = []
    for row in rows:
        if row.kind in (*wanted, "unusable"):
            yield row
        else:
            need = needs[wanted[0]]
            faults.append(f"{row.where}: {field} needs {need}; this row is a {row.kind}")
    raise_faults(faults)
