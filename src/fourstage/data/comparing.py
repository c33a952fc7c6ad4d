"""Sources of a reward model's batches: pairs, rankings, judged answers and judged steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fourstage.data.batch import Batch
from fourstage.data.sources import EndlessStream, PairSource, pair_batch
from fourstage.data.store import Store
from fourstage.errors import InputError

# head -> (mean, std) of its labels in training, which regression takes them apart by.
Scales = Mapping[str, tuple[float, float]]


class Elements:
    """What a store of rewards holds: the rows of each element, a pair, a ranking or an answer."""

    def __init__(self, store: Store):
        self.store = store
        self.told = store.row(0) if len(store) else {}
        count = len(store)
        if "group" in self.told:
            groups = np.array([store.row(index)["group"] for index in range(count)])
            self.starts = np.flatnonzero(np.diff(groups, prepend=-1))
        elif "labels" in self.told:
            self.starts = np.arange(count)
        else:
            self.starts = np.arange(0, count - 1, 2)
        self.stops = np.append(self.starts[1:], count)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def are_plain_pairs(self) -> bool:
        return not ({"group", "labels"} & self.told.keys())

    def rows(self, element: int) -> range:
        return range(int(self.starts[element]), int(self.stops[element]))

    @property
    def most_cells(self) -> int:
        """Cells of the largest."""
        ends = np.cumsum(np.asarray(self.store.lengths))
        sizes = ends[self.stops - 1] - ends[self.starts] + self.store.lengths[self.starts]
        return int(sizes.max(initial=1))


def elements_of(store: Store) -> int:
    """How many pairs, rankings or answers there are to learn from."""
    return len(Elements(store))


class RewardSource:
    """`per_step` elements a step, each in its turn once an epoch.

    Args:
        heads: names of the heads, in their order; () is one without a name.
        scales: what labels are standardised with, by head.
    """

    depends_on_number_alone = True

    def __init__(
        self,
        store: Store,
        per_step: int,
        seed: int,
        heads: Sequence[str] = (),
        scales: Scales | None = None,
    ):
        self.elements, self.per_step = Elements(store), per_step
        self.heads, self.scales = tuple(heads), dict(scales or {})
        sizes = np.ones(len(self.elements), np.int64)
        self._stream = EndlessStream(sizes, per_step, seed)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._stream.epoch_cells / self.per_step)

    @property
    def most_cells(self) -> int:
        """Cells that no batch has more of."""
        return self.per_step * self.elements.most_cells

    def batch(self, step: int) -> Batch:
        return reward_batch(self.elements, self._stream.at(step), self.heads, self.scales)

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """Nothing to restore: the batch depends on the step alone."""


def reward_source(
    store: Store,
    per_step: int,
    seed: int,
    heads: Sequence[str] = (),
    scales: Scales | None = None,
) -> PairSource | RewardSource:
    """The source of a store: of pairs, where it holds nothing else."""
    if Elements(store).are_plain_pairs:
        if heads:
            raise InputError(
                "reward.heads: the comparisons do not say which head they are about: give each row "
                "of data.preferences a 'head', or name its key with data.map.head=KEY"
            )
        return PairSource(store, per_step, seed, margins=store.index["rows"])
    return RewardSource(store, per_step, seed, heads, scales)


def reward_batch(
    elements: Elements,
    chosen: Sequence[int],
    heads: Sequence[str] = (),
    scales: Scales | None = None,
) -> Batch:
    """The rows of the chosen elements, with what is said of them."""
    if elements.are_plain_pairs:
        return pair_batch(elements.store, list(chosen), elements.store.index["rows"])
    store = elements.store
    owned = [(n, row) for n, element in enumerate(chosen) for row in elements.rows(element)]
    batch = Batch.rows([store[row] for _, row in owned], [n for n, _ in owned])
    told = [store.row(row) for _, row in owned]
    if "group" in elements.told:
        _add_places(batch, told, heads)
    elif "cells" in elements.told:
        _add_steps(batch, told)
    else:
        _add_labels(batch, told, heads, scales or {})
    return batch


def _add_places(batch: Batch, told: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> None:
    batch.documents["places"] = torch.tensor([row["place"] for row in told])
    # All of a ranking have one, or none: without, its margins are 0.
    qualities = [float(row.get("quality", 0.0)) for row in told]
    batch.documents["qualities"] = torch.tensor(qualities)
    if heads:
        number = {name: index for index, name in enumerate(heads)}
        batch.documents["heads"] = torch.tensor([number[row["head"]] for row in told])


def _add_labels(
    batch: Batch, told: Sequence[Mapping[str, Any]], heads: Sequence[str], scales: Scales
) -> None:
    """`labels` and `label_weights`, [documents] or [documents, heads]."""
    names = list(heads) or [""]
    labels, weights = torch.zeros(len(told), len(names)), torch.zeros(len(told), len(names))
    for at, row in enumerate(told):
        for column, name in enumerate(names):
            if name in row["labels"]:
                mean, std = scales.get(name, (0.0, 1.0))
                labels[at, column] = (row["labels"][name] - mean) / std
                weights[at, column] = 1.0
    if not heads:
        labels, weights = labels[:, 0], weights[:, 0]
    batch.documents["labels"], batch.documents["label_weights"] = labels, weights


def _add_steps(batch: Batch, told: Sequence[Mapping[str, Any]]) -> None:
    labels, weights = torch.zeros(batch.cells), torch.zeros(batch.cells)
    starts = np.cumsum([0, *batch.lengths])
    for start, row in zip(starts, told, strict=False):
        cells = torch.tensor(row["cells"]) + int(start)
        labels[cells], weights[cells] = torch.tensor(row["labels"]).float(), 1.0
    batch.streams["step_labels"], batch.streams["step_weights"] = labels, weights


def label_scales(store: Store, heads: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each head's labels; 1 where they do not vary."""
    values: dict[str, list[float]] = {name: [] for name in heads or ("",)}
    for index in range(len(store)):
        for name, value in store.row(index)["labels"].items():
            if name in values:
                values[name].append(float(value))
    empty = [name for name, found in values.items() if not found]
    if empty:
        raise InputError(f"reward.heads: no row has a score for {', '.join(map(repr, empty))}")
    return {name: (float(np.mean(v)), float(np.std(v)) or 1.0) for name, v in values.items()}


def check_heads(store: Store, heads: Sequence[str]) -> None:
    """Every comparison is about a head that there is, and every head has comparisons.

    Raises:
        InputError: naming those that are missing or unknown.
    """
    found = {store.row(index).get("head", "") for index in range(len(store))}
    if not heads:
        return
    unknown, unheard = sorted(found - set(heads)), sorted(set(heads) - found)
    if unknown:
        names = ", ".join(repr(name) if name else "no head at all" for name in unknown[:5])
        raise InputError(
            f"reward.heads: rows of data.preferences are about {names}; the heads are "
            f"{', '.join(heads)}"
        )
    if unheard:
        raise InputError(f"reward.heads: no row of data.preferences is about {', '.join(unheard)}")
