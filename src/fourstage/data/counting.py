"""Rows of a person's own files, counted before they are prepared: what a plan asks first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from fourstage.data.corpus.recipes import unpacked_bytes
from fourstage.data.judging import kinds_for
from fourstage.data.reading import (
    RawFile,
    RawRow,
    as_paths,
    find_files,
    inspect_file,
    read_rows_and_faults,
    read_text,
)
from fourstage.data.reading.hub import is_hub_id
from fourstage.data.shapes import Malformed, Row, recognise
from fourstage.errors import InputError
from fourstage.planning.facts import DataFacts, RowCount
from fourstage.recipe.preference import reads_comparisons, takes_judgements
from fourstage.recipe.schema import PARTS, Recipe

# Read in less than a second; more keep the usual numbers.
_MOST_BYTES = 32_000_000
# Rows that are looked at, spread evenly: the others are only counted.
_LOOKED_AT = 1000
# What is held out of few rows, as `fromfiles` has it.
_LEAST_HELD_OUT = 100
# What a plan takes for granted of rows that were not counted.
_USUAL = {
    "sft": "10,000 demonstrations",
    "preferences": "20,000 comparisons",
    "prompts": "20,000 prompts",
}


def with_counts(recipe: Recipe, facts: DataFacts) -> tuple[DataFacts, list[str]]:
    """The facts with the rows of files that are here and small, and what to say of all files.

    What is known of prepared data is left as it is. Nothing is fetched, and files that cannot be
    read are refused by preparation, not here.
    """
    found = [count_part(recipe, part) for part in _parts_read(recipe)]
    comparisons, preferences = facts.comparisons, facts.preferences
    for each in found:
        if each.part == "preferences" and each.count is not None:
            comparisons = comparisons or each.count.train
            preferences = preferences or each.pairs
    counts = {each.part: each.count for each in found if each.count is not None}
    known = replace(facts, counted=counts, comparisons=comparisons, preferences=preferences)
    return known, [each.told for each in found]


def _parts_read(recipe: Recipe) -> list[str]:
    """The parts that the run reads from files, but for the text."""
    stages = [stage for stage in recipe.needed() if stage != "pretrain"]
    parts = [PARTS[stage] for stage in stages]
    if reads_comparisons(recipe.rl) and "preferences" not in parts:
        parts.insert(len(parts) - 1, "preferences")
    return [part for part in parts if recipe.data.paths(part)]


@dataclass
class Found:
    """What was counted of a part, or why not.

    Attributes:
        count: None where it keeps the usual number.
        pairs: comparisons to train on, of which a ranking holds several.
        told: a line for whoever plans.
    """

    part: str
    told: str
    count: RowCount | None = None
    pairs: int | None = None


def count_part(recipe: Recipe, part: str) -> Found:
    """The rows of `data.sft`, `data.preferences` or `data.prompts`, without repeats."""
    paths = recipe.data.paths(part)

    def guessed(why: str) -> Found:
        return Found(part, f"data.{part}: {_USUAL[part]} taken for granted, since {why}.")

    if any(is_hub_id(path) for path in as_paths(paths)):
        return guessed("rows of the hub are counted once they are here")
    try:
        files = find_files(paths, f"data.{part}")[0]
        if unpacked_bytes(files) > _MOST_BYTES:
            return guessed(f"more than {_MOST_BYTES // 10**6} MB are counted when they are read")
        seen = _look(files, recipe.data.keys)
    except (ValueError, RecursionError, OSError) as error:
        # Preparation refuses what cannot be read; a plan goes on.
        reason = error.faults[0] if isinstance(error, InputError) else str(error)
        return guessed(f"they cannot be counted ({reason})")
    return _of_rows(recipe, part, seen, files) or guessed("none of its rows is known")


@dataclass
class _Seen:
    """Rows that were counted, and those of them that were looked at."""

    total: int = 0
    repeats: int = 0
    step: int = 1
    values: list[Any] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Any) -> None:
        """Counts a row and keeps it where its turn has come; half of them where they get many."""
        if self.total % self.step == 0:
            self.values.append(row)
        self.total += 1
        if len(self.values) > _LOOKED_AT:
            self.values, self.step = self.values[::2], 2 * self.step


def _look(files: Sequence[RawFile], mapping: dict[str, str]) -> _Seen:
    """Counts the different rows of the files, and recognises some of them.

    Raises:
        InputError: a file that cannot be read.
    """
    seen, known = _Seen(), set[int]()
    for file in files:
        for value in _values(file):
            content = hash(repr(value))
            if content in known:
                seen.repeats += 1
            else:
                known.add(content)
                seen.add(value)
    for value in seen.values:
        try:
            seen.rows.append(recognise(value, "", mapping))
        except Malformed:
            continue
    return seen


def _values(file: RawFile) -> Iterator[Any]:
    """Values of the rows of a file; of a text its lines, which are prompts."""
    if inspect_file(file).holds_rows:
        yield from (row.value for row in read_rows_and_faults(file) if isinstance(row, RawRow))
        return
    yield from ({"prompt": line} for line in read_text(file).split("\n") if line.strip())


def _of_rows(recipe: Recipe, part: str, seen: _Seen, files: Sequence[RawFile]) -> Found | None:
    """What the rows looked at tell of all; None where none of them can be used."""
    kinds = _kinds(recipe, part)
    rows = [row for row in seen.rows if row.kind in kinds]
    if not rows:
        return None
    usable = seen.total * len(rows) / len(seen.values)
    held_out = max(recipe.data.validation, min(_LEAST_HELD_OUT / usable, 0.1))
    said = [texts for row in rows for texts in _said(part, row)]
    elements = usable * fmean(_elements(recipe, part, row) for row in rows)
    count = RowCount(
        train=max(1, round(elements * (1 - held_out))),
        held_out=max(1, round(elements * held_out)),
        text_bytes=fmean(sum(map(_bytes, texts)) for texts in said),
        turns=fmean(map(len, said)),
    )
    pairs = usable * (1 - held_out) * fmean(map(_pairs, rows))
    named = files[0].name if len(files) == 1 else f"{len(files)} files"
    read = f"{seen.total + seen.repeats:,} rows"
    different = f", {seen.total:,} of them different" if seen.repeats else ""
    told = f"data.{part}: {read} counted in {named}{different}."
    return Found(part, told, count, max(1, round(pairs)))


def _kinds(recipe: Recipe, part: str) -> tuple[str, ...]:
    """Kinds of rows that the part takes."""
    if part != "preferences":
        return ("dialogue",) if part == "sft" else ("prompt", "dialogue")
    if takes_judgements(recipe.rl):
        return ("comparison", "ranking", "unpaired")
    return kinds_for(recipe.reward)


def _said(part: str, row: Row) -> list[list[str]]:
    """The texts of the conversations that are read of a row, one for each of its answers."""
    messages = [message["content"] for message in row.messages or []]
    if part == "prompts" and row.kind == "dialogue":
        return [messages[:-1]]
    if row.kind == "stepwise":
        return [[*messages, "\n".join(row.responses)]]
    answers = (row.chosen, row.rejected) if row.kind == "comparison" else row.responses
    return [[*messages, answer] for answer in answers] or [messages]


def _elements(recipe: Recipe, part: str, row: Row) -> int:
    """What a row is to its stage: one, but several where each answer is judged by itself."""
    alone = part == "preferences" and recipe.reward.objective == "regression"
    return len(row.responses) if alone and row.kind == "ranking" else 1


def _pairs(row: Row) -> float:
    """Comparisons in a row; two single judgements count as one."""
    return 0.5 if row.kind == "unpaired" else len(row.pairs())


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
