"""Rows recognised by their keys, or refused in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fourstage.data.shapes.answered import (
    LABELS,
    SAID,
    SCORES,
    SEVERAL,
    TEXTS,
    read_answered,
    read_conversation,
    read_prompt,
    read_text,
)
from fourstage.data.shapes.asked import ASKED, CONVERSATIONS, LAST_RESORTS, SYSTEM
from fourstage.data.shapes.choices import read_choice, read_program
from fourstage.data.shapes.comparisons import PAIRS, read_comparison
from fourstage.data.shapes.hints import FORMS, unknown
from fourstage.data.shapes.rankings import read_ranking
from fourstage.data.shapes.row import Malformed, Row
from fourstage.data.shapes.steps import read_steps
from fourstage.data.shapes.truth import TRUTHS
from fourstage.data.shapes.turns import is_conversation
from fourstage.data.shapes.values import Columns, kind_of
from fourstage.errors import InputError, nearest

_SPEAKING = ("text", *CONVERSATIONS, *ASKED, *SAID)
# What `data.map` may name.
NAMES = frozenset(
    (
        *(*_SPEAKING, *TEXTS, *LAST_RESORTS, *SYSTEM, *LABELS, *SCORES, *SEVERAL, *TRUTHS),
        *(
            "tools",
            "margin",
            "scores",
            "ranks",
            "choices",
            "reasoning_content",
            "winner",
            "preference",
            *("steps", "step_labels", "head", "category"),
        ),
        *("response_a", "response_b", "score_chosen", "score_rejected"),
        *(name for pair in PAIRS for name in pair),
    )
)
# The first that knows a row's keys reads it: what tells more about the row stands before what tells
# less, so that comparisons are no prompts with an odd column.
_READERS: tuple[Callable[[Columns, str], Row | None], ...] = (
    read_comparison,
    read_steps,
    read_ranking,
    read_program,
    read_choice,
    read_conversation,
    read_answered,
    read_text,
    read_prompt,
)


def recognise(value: Any, where: str, mapping: Mapping[str, str] | None = None) -> Row:
    """One row by its keys, whichever way they are capitalised.

    Args:
        value: any JSON value.
        where: its place, which the row keeps.
        mapping: our names of keys to those of the row, dots leading into objects; where it says
            what the text is, nothing else of the row counts. A row without the keys that it names
            is known by those it has.

    Raises:
        Malformed: it has none of the known sets of keys, or a value that is none for its key.
        Unteachable: it is a comparison that compares nothing.
    """
    if isinstance(value, str):
        if not value.strip():
            raise Malformed("an empty string")
        return Row("text", where, text=value, shape="strings")
    if is_conversation(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise Malformed(f"a row is an object with keys, this is {kind_of(value)}; known: {FORMS}")
    columns = Columns(value, mapping)
    is_text = mapping and "text" in mapping and columns.missing is None
    readers = (read_text,) if is_text else _READERS
    for reader in readers:
        row = reader(columns, where)
        if row is not None:
            return row
    raise columns.missing or Malformed(_refusal(columns))


def _refusal(columns: Columns) -> str:
    """Why nothing reads a row: what should say something is null, or its keys are not known."""
    null = next((name for name in _SPEAKING if columns.has(name) and name not in columns), None)
    if null is None:
        return unknown(columns)
    kind = "a list of messages" if null in CONVERSATIONS else "a string"
    return f"{columns.written(null)} is null: write {kind}"


def check_mapping(mapping: Mapping[str, str], field: str = "data.map") -> None:
    """Refuses names that are none of ours.

    Raises:
        InputError: with the nearest name that is.
    """
    faults = [
        f"{field}.{name}: there is no such key{nearest(name, sorted(NAMES))}; write {field}.OURS="
        "THEIRS with text, messages, prompt, response, question, answer, chosen, rejected ..."
        for name in mapping
        if name not in NAMES
    ]
    if faults:
        raise InputError(*faults)
