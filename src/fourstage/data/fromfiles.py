"""Materials from a person's own rows: conversations, comparisons and prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fourstage.data.documents import content_hash, place
from fourstage.data.encoding import Demonstration, Pair
from fourstage.data.making import Limits, free_task, reference_task
from fourstage.data.reading import RawFile, read_rows, read_text
from fourstage.data.rows import Row, refuse_kind, understand
from fourstage.data.words import Vocabulary
from fourstage.errors import InputError
from fourstage.tasks import Messages, Task

# Two percent of a small file would measure nothing: so many are held out, or a tenth.
_LEAST_HELD_OUT = 100


@dataclass
class Rows:
    """Rows kept for training and held out, and counts of what was dropped."""

    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def read_part(raw: Iterable[RawFile], kinds: tuple[str, ...], part: str, share: float) -> Rows:
    """Rows of one part of the data, without duplicates, split by a hash of their prompts.

    A prompt with several answers stays on one side.

    Raises:
        InputError: unreadable or malformed rows, rows of another kind, none, or too few to split.
    """
    name = f"data.{part}"
    rows = Rows(counts=Counter({"read": 0, "duplicate": 0, "unusable": 0}))
    seen: set[bytes] = set()
    kept: list[Row] = []
    for file in raw:
        if not file.holds_rows:
            lines = _lines_of(file, kinds, name)
            rows.counts["read"] += len(lines)
            kept += lines
            continue
        for row in refuse_kind(understand(read_rows(file)), kinds, name):
            rows.counts["read"] += 1
            content = content_hash(json.dumps([row.messages, row.chosen, row.rejected]))
            if row.kind == "unusable" or (row.kind == "comparison" and row.chosen == row.rejected):
                rows.counts["unusable"] += 1
            elif content in seen:
                rows.counts["duplicate"] += 1
            else:
                seen.add(content)
                kept.append(row)
    if not kept:
        raise InputError(f"{name}: there is no row in it that can be used; give at least two")
    rows.train, rows.validation = _split(kept, share, name)
    rows.counts |= Counter(train=len(rows.train), validation=len(rows.validation))
    return rows


def _lines_of(file: RawFile, kinds: tuple[str, ...], name: str) -> list[Row]:
    """Prompts as lines of a text file; other parts need rows.

    Raises:
        InputError: the part is not made of prompts.
    """
    if kinds[0] != "prompt":
        raise InputError(
            f"{name}: {file.path} is plain text; write JSON lines or a JSON list of rows"
        )
    lines = [line.strip() for line in read_text(file).split("\n")]
    return [
        Row("prompt", f"{file.path}:{number}", messages=[{"role": "user", "content": line}])
        for number, line in enumerate(lines, 1)
        if line
    ]


def _split(rows: list[Row], share: float, name: str) -> tuple[list[Row], list[Row]]:
    places = [place(json.dumps(_asked(row))) for row in rows]
    least = max(1, min(_LEAST_HELD_OUT, len(rows) // 10))
    bound = max(share, sorted(places)[least - 1])
    train = [row for row, at in zip(rows, places, strict=True) if at > bound]
    held_out = [row for row, at in zip(rows, places, strict=True) if at <= bound]
    if not train:
        raise InputError(
            f"{name}: {len(rows)} row(s) with data.validation={share:g} leave nothing to train "
            "on; give rows with at least two different prompts"
        )
    return train, held_out


def _asked(row: Row) -> Messages:
    messages = row.messages or []
    return messages[:-1] if row.kind == "dialogue" else messages


def _prompt(messages: Messages) -> str | Messages:
    """A lone user's message as its text, else the conversation."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return messages


def demonstration(row: Row) -> Demonstration:
    messages = row.messages or []
    task = reference_task(_prompt(messages[:-1]), messages[-1]["content"])
    return Demonstration(task, messages)


def pair(row: Row) -> Pair:
    task = reference_task(_prompt(row.messages or []), row.chosen)
    return Pair(task, row.chosen, row.rejected, margin=row.margin)


def task_maker(vocabulary: Vocabulary | None, limits: Limits) -> Callable[[Row], Task]:
    """How a row of prompts becomes a task: with a reference where it has an answer."""

    def make(row: Row) -> Task:
        if row.kind == "dialogue":
            return demonstration(row).task
        return free_task(_prompt(row.messages or []), vocabulary, limits)

    return make
