"""Answers in steps, each of which is judged: what process reward models learn from."""

from __future__ import annotations

from typing import Any

from fourstage.data.shapes.answered import as_label
from fourstage.data.shapes.asked import before
from fourstage.data.shapes.row import Malformed, Row, Unteachable
from fourstage.data.shapes.turns import as_messages
from fourstage.data.shapes.values import Columns, is_lines, kind_of, number, unpacked

_LABELS = ("labels", "step_labels", "ratings")
# Math-Shepherd marks the end of each step with this; its label has + or - in its place.
_MARK = "ки"


def read_steps(columns: Columns, where: str) -> Row | None:
    """Rows of a prompt, steps and their labels: TRL's stepwise supervision, and Math-Shepherd's.

    Labels are true or false, numbers from 0 to 1, or ratings of -1, 0 and 1, of which 0 (neutral)
    counts as right, as Lightman et al. (2023) take PRM800K's.

    Raises:
        Malformed: labels that do not fit the steps, or say nothing.
        Unteachable: a step is empty.
    """
    marked = _marked(columns)
    if marked is not None:
        asked, steps, labels = marked
        messages = [{"role": "user", "content": asked}]
        return _row(where, messages, steps, labels, columns.written("label"))
    steps = _list(columns, "steps") or _list(columns, "completions")
    name = columns.first(_LABELS if "steps" in columns else _LABELS[:1])
    if steps is None or name is None or not isinstance(unpacked(columns[name]), list):
        return None
    turns = before(columns)
    if turns is None:
        raise Malformed("steps without a prompt: add the key 'prompt'")
    if turns[-1].role != "user":
        raise Malformed("the prompt of an answer in steps ends with a message of the user")
    return _row(where, as_messages(turns), steps, unpacked(columns[name]), columns.written(name))


def _list(columns: Columns, name: str) -> list[str] | None:
    value = unpacked(columns.get(name))
    return value if value and is_lines(value) else None


def _marked(columns: Columns) -> tuple[str, list[str], list[str]] | None:
    """Math-Shepherd's: prompt and steps in one text, `label` the same text with its marks set."""
    text, told = columns.get("input"), columns.get("label")
    if not isinstance(text, str) or not isinstance(told, str) or _MARK not in text:
        return None
    asked, begins, rest = text.partition("Step 1:")
    if not begins:
        return None
    steps = [step.strip() for step in (begins + rest).split(_MARK)]
    steps = [step for step in steps if step]
    labels = [line.strip()[-1:] for line in told.strip().split("\n") if line.strip()[-1:] in "+-"]
    return asked.strip(), steps, labels


def _row(
    where: str, messages: list[dict[str, str]], steps: list[str], told: list[Any], name: str
) -> Row:
    if any(not step.strip() for step in steps):
        raise Unteachable("a step is empty")
    if len(told) != len(steps):
        raise Malformed(f"{name} holds {len(told)} labels for {len(steps)} steps")
    labels = [_label(value, name) for value in told]
    if min(labels) < 0:
        labels = [float(label >= 0) for label in labels]
    return Row(
        "stepwise",
        where,
        messages=messages,
        shape="stepwise",
        responses=tuple(step.strip() for step in steps),
        scores=tuple(labels),
    )


def _label(value: Any, name: str) -> float:
    if value in ("+", "-"):
        return float(value == "+")
    found = number(value)
    if found is not None and (0 <= found <= 1 or found == -1):
        return found
    word = as_label(value)
    if word is None:
        raise Malformed(f"{name} holds {kind_of(value)}: write true or false for each step")
    return float(word)
