"""Comparisons: a chosen and a rejected answer to one prompt."""

from __future__ import annotations

from typing import Any

from fourstage.data.shapes.asked import before
from fourstage.data.shapes.row import Malformed, Row, Unteachable
from fourstage.data.shapes.transcripts import begins_transcript, holds_turns, read_transcript
from fourstage.data.shapes.turns import (
    ROLE_KEYS,
    Turn,
    as_messages,
    is_conversation,
    read_turns,
    user,
)
from fourstage.data.shapes.values import Columns, kind_of, number, unpacked

# (chosen, rejected); in pairs of StackExchange answers j is the better one.
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred", "dispreferred"),
    ("pos_resp", "neg_resp"),
    ("response_j", "response_k"),
)
_MARGINS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)


def read_comparison(columns: Columns, where: str) -> Row | None:
    """Rows with a better and a worse answer.

    Raises:
        Unteachable: an answer is empty, the answers are the same, or they answer different prompts:
            what is learnt then is which prompt is liked, not which answer.
    """
    for better, worse in PAIRS:
        if better in columns and worse in columns:
            return _compared(columns, better, worse, where)
        # Where only one is known, the row may be of another kind; these two names are of no other.
        if better == "chosen" and (better in columns or worse in columns):
            missing = worse if better in columns else better
            raise Malformed(f"{columns.written(missing)} is null or missing in a comparison")
    return None


def _compared(columns: Columns, better: str, worse: str, where: str) -> Row:
    names = columns.written(better), columns.written(worse)
    sides = _side(columns[better]), _side(columns[worse])
    asked = before(columns)
    shape = "preference"
    if isinstance(sides[0], str) and isinstance(sides[1], str):
        if _are_transcripts(*sides, asked is not None):
            asked, chosen, rejected = compared_turns(
                asked, _transcript(sides[0], names[0]), _transcript(sides[1], names[1]), names
            )
        elif asked is not None:
            chosen, rejected = sides[0].strip(), sides[1].strip()
        else:
            shape = "implicit-prompt"
            asked, chosen, rejected = _implicit(sides[0], sides[1], names)
    elif isinstance(sides[0], list) and isinstance(sides[1], list):
        turns = [read_turns(side, name) for side, name in zip(sides, names, strict=True)]
        asked, chosen, rejected = compared_turns(asked, *turns, names)
    else:
        kinds = " and ".join(kind_of(columns[name]) for name in (better, worse))
        raise Malformed(
            f"{names[0]} and {names[1]} are {kinds}: write two strings or two lists of messages"
        )
    _check(chosen, rejected, names)
    messages = as_messages(asked)
    if messages[-1]["role"] != "user":
        raise Malformed("the prompt of a comparison ends with a message of the user")
    margin = _margin(columns)
    return Row("comparison", where, "", messages, chosen, rejected, margin, shape)


def _side(value: Any) -> Any:
    """An answer as a string or as a list of messages."""
    if isinstance(value, dict):
        return [value] if any(key in value for key in ROLE_KEYS) else value.get("text", value)
    return unpacked(value) if is_conversation(value) else value


def _are_transcripts(chosen: str, rejected: str, is_asked: bool) -> bool:
    """Whether two texts are meant as transcripts; answers to a prompt may quote turns."""
    if is_asked:
        return begins_transcript(chosen) and begins_transcript(rejected)
    return holds_turns(chosen) or holds_turns(rejected)


def _transcript(text: str, name: str) -> list[Turn]:
    turns = read_transcript(text, name)
    if not turns[-1].content:
        raise Unteachable(f"{name} ends in an empty turn of 'Assistant:'")
    return turns


def _check(chosen: str, rejected: str, names: tuple[str, str]) -> None:
    for answer, name in zip((chosen, rejected), names, strict=True):
        if not answer.strip():
            raise Unteachable(f"{name} is empty")
    if chosen.strip() == rejected.strip():
        raise Unteachable(f"{names[0]} and {names[1]} are the same answer")


def compared_turns(
    asked: list[Turn] | None, chosen: list[Turn], rejected: list[Turn], names: tuple[str, str]
) -> tuple[list[Turn], str, str]:
    """What two conversations have in common, and their last answers.

    Args:
        asked: what stands before them, where they are the answers alone.

    Raises:
        Malformed: one does not end with the assistant, or nothing stands before the answers.
        Unteachable: they differ before the last answer.
    """
    for side, name in zip((chosen, rejected), names, strict=True):
        if side[-1].role != "assistant":
            raise Malformed(f"{name} does not end with a message of the assistant")
    prompts = [[(t.role, t.content.strip()) for t in side[:-1]] for side in (chosen, rejected)]
    if prompts[0] != prompts[1]:
        pairs = zip(*prompts, strict=False)
        place = next((n for n, (a, b) in enumerate(pairs, 1) if a != b), 1 + min(map(len, prompts)))
        raise Unteachable(
            f"{names[0]} and {names[1]} have different prompts: they part at message {place}, "
            "before the last answer"
        )
    # Whole conversations repeat the prompt (UltraFeedback); lone answers do not.
    common = chosen[:-1]
    if not any(turn.role == "user" for turn in common):
        common = [*(asked or []), *common]
    if not common:
        raise Malformed(f"{names[0]} and {names[1]} share no prompt: add the key 'prompt'")
    return common, chosen[-1].content, rejected[-1].content


def _implicit(chosen: str, rejected: str, names: tuple[str, str]) -> tuple[list[Turn], str, str]:
    """All that two texts have in common, up to a word's end, is their prompt, as in TRL."""
    same = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    if chosen.strip() == rejected.strip():
        raise Unteachable(f"{names[0]} and {names[1]} are the same answer")
    same = max(chosen.rfind(" ", 0, same), chosen.rfind("\n", 0, same)) + 1
    if not chosen[:same].strip():
        raise Malformed(f"{names[0]} and {names[1]} share no prompt: add the key 'prompt'")
    return [user(chosen[:same].strip())], chosen[same:].strip(), rejected[same:].strip()


def _margin(columns: Columns) -> float | None:
    told = number(columns.get("margin"))
    if told is not None:
        return told
    for names in _MARGINS:
        better, worse = (number(columns.get(name)) for name in names)
        if better is not None and worse is not None:
            return better - worse
    return None
