"""The data of the reward stage: what its objective learns from, written as stores.

Plain comparisons are written as pairs of rows, chosen before rejected; all else as rows with what
is said of them beside them (`data.judgements`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from fourstage.data import fromfiles
from fourstage.data.comparing import check_heads
from fourstage.data.encoding import Pair, pair_examples, shortened
from fourstage.data.judgements import (
    Judged,
    Ranking,
    Stepped,
    Written,
    judged_rows,
    ranking_rows,
    stepped_rows,
)
from fourstage.data.shapes import Row
from fourstage.data.store import Store, write_store
from fourstage.errors import InputError
from fourstage.files import write_lines
from fourstage.recipe.rewarding import RewardKind
from fourstage.tokenizer import Tokenizer

Element: TypeAlias = Pair | Ranking | Judged | Stepped


@dataclass
class RewardRows:
    """What a reward model is trained and measured on.

    Attributes:
        train, held_out: elements of one kind.
        pairs: held-out comparisons as text; of elements that are none, those that belong to them.
    """

    train: Sequence[Element]
    held_out: Sequence[Element]
    pairs: list[Pair] = field(default_factory=list)


def from_rows(
    train: Sequence[Row], held_out: Sequence[Row], section: RewardKind, most: int
) -> RewardRows:
    """The elements of a person's own rows, at most so many of them held out."""
    if section.objective == "process":
        steps, beyond = ([fromfiles.stepped(row) for row in rows] for rows in (train, held_out))
        return RewardRows(steps, beyond[:most])
    pairs = [fromfiles.pair(pair) for row in held_out for pair in row.pairs()][:most]
    if section.objective != "bradley_terry":
        judged, beyond = (
            [each for row in rows for each in fromfiles.judged(row)] for rows in (train, held_out)
        )
        return RewardRows(judged, beyond[:most], pairs)
    if _are_plain([*train, *held_out], section):
        shown = [fromfiles.pair(pair) for row in train for pair in row.pairs()]
        return RewardRows(shown, pairs, pairs)
    ties = section.ties != "drop"
    ranked, beyond = (
        [each for each in map(fromfiles.ranking, rows) if _teaches(each, ties)]
        for rows in (train, held_out)
    )
    return RewardRows(ranked, beyond[:most], pairs)


def _are_plain(rows: Sequence[Row], section: RewardKind) -> bool:
    """Whether nothing is lost where each row is a pair: no third answer, tie or head."""
    if section.heads:
        return False
    return section.ties == "drop" and all(len(row.responses) <= 2 for row in rows)


def _teaches(ranking: Ranking, ties: bool) -> bool:
    return len(ranking.places) > 1 and (ties or len(set(ranking.places)) > 1)


def write_rewards(
    folder: Path,
    rows: RewardRows,
    tokenizer: Tokenizer,
    context: int,
    heads: Sequence[str],
    counts: Counter[str],
) -> dict[str, int]:
    """Writes train/, validation/ and validation.jsonl; how many elements each store has.

    Raises:
        InputError: nothing fits the context, or a head has no rows.
    """
    if all(isinstance(each, Pair) for each in [*rows.train, *rows.held_out]):
        train = _write_pairs(folder / "train", rows.train, tokenizer, context, counts)
        pairs = _write_pairs(folder / "validation", rows.held_out, tokenizer, context, counts)
        found = {"train": len(train), "validation": len(pairs)}
    else:
        found = {}
        for split, elements in (("train", rows.train), ("validation", rows.held_out)):
            found[split], store = _write_told(folder / split, elements, tokenizer, context, counts)
            if split == "train" and isinstance(elements[0], Ranking):
                check_heads(store, heads)
        fitted = (shortened(tokenizer, pair, context, Counter()) for pair in rows.pairs)
        pairs = [pair for pair in fitted if pair is not None]
    write_lines(folder / "validation.jsonl", [pair.to_json() for pair in pairs])
    return found


def _write_pairs(
    folder: Path,
    pairs: Iterable[Element],
    tokenizer: Tokenizer,
    context: int,
    counts: Counter[str],
) -> list[Pair]:
    """The comparisons as they were written: those that fit, some of them shortened."""
    fitted = (
        shortened(tokenizer, pair, context, counts) for pair in pairs if isinstance(pair, Pair)
    )
    written = [pair for pair in fitted if pair is not None]
    _require(written, context)
    examples = [row for pair in written for row in pair_examples(tokenizer, pair)]
    margins = [{} if pair.margin is None else {"margin": pair.margin} for pair in written]
    extra = [row for margin in margins for row in (margin, {})] if any(margins) else None
    write_store(folder, examples, extra, vocab_size=tokenizer.vocab_size, masked=True)
    return written


def _write_told(
    folder: Path,
    elements: Iterable[Element],
    tokenizer: Tokenizer,
    context: int,
    counts: Counter[str],
) -> tuple[int, Store]:
    written: list[list[Written]] = []
    for each in elements:
        if isinstance(each, Ranking):
            rows = ranking_rows(tokenizer, each, len(written), context, counts)
        elif isinstance(each, Judged):
            rows = judged_rows(tokenizer, each, context, counts)
        else:
            assert isinstance(each, Stepped), "elements of a store are of one kind"
            rows = stepped_rows(tokenizer, each, context, counts)
        if rows:
            written.append(rows)
    _require(written, context)
    flat = [row for rows in written for row in rows]
    examples, told = [example for example, _ in flat], [told for _, told in flat]
    size = tokenizer.vocab_size
    return len(written), write_store(folder, examples, told, vocab_size=size, masked=True)


def _require(items: Sequence[object], context: int) -> None:
    if not items:
        raise InputError(
            f"data.preferences: nothing in it fits model.context={context}: write a larger "
            "model.context, or give shorter rows"
        )
