"""Sources: the batch of a step as a pure function of (seed, step), with no cursor to save.

The data of all epochs form one endless stream: in each epoch every piece once, in an order drawn
from (seed, epoch). Step s takes the pieces that start within cells [s B, (s + 1) B) of that stream
(with a batch that grows, within the cells that a formula gives it), so it can be found without
walking there, whatever was trained before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from fourstage.data.batch import Batch
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.randomness import permutation
from fourstage.recipe.ramp import StepCells


@dataclass(frozen=True)
class Slices:
    """Parts of pieces: [n] which piece each is of, how many of its cells it skips and takes."""

    pieces: np.ndarray
    skip: np.ndarray
    take: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Slices]) -> Slices:
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([none, *(part.pieces for part in parts)]),
            np.concatenate([none, *(part.skip for part in parts)]),
            np.concatenate([none, *(part.take for part in parts)]),
        )


class EndlessStream:
    """Pieces of known sizes in a new order each epoch, cut into steps of `step_cells` cells."""

    def __init__(self, sizes: np.ndarray, step_cells: int | StepCells, seed: int):
        self.step_cells = StepCells.of(step_cells)
        if len(sizes) == 0 or self.step_cells.least < 1:
            raise InputError("there is nothing to train on: the store is empty")
        self.sizes, self.seed = sizes, seed
        self.epoch_cells = int(sizes.sum())
        # Two epochs meet in one step at most ends; a few more serve validation on the side.
        self._epoch = lru_cache(maxsize=3)(self._ordered)

    def _ordered(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the pieces in `epoch`, and the cell at which each of them starts."""
        order = permutation(len(self.sizes), self.seed, "epoch", epoch)
        ends = np.cumsum(self.sizes[order])
        return order, ends - self.sizes[order]

    def at(self, step: int) -> list[int]:
        """Pieces that start in the cells of `step`, in the stream's order."""
        first, last = self.step_cells.span(step)
        pieces: list[int] = []
        for epoch in range(first // self.epoch_cells, (last - 1) // self.epoch_cells + 1):
            order, starts = self._epoch(epoch)
            base = epoch * self.epoch_cells
            low, high = np.searchsorted(starts, (first - base, last - base), side="left")
            pieces += order[low:high].tolist()
        return pieces

    def slices(self, first: int, last: int) -> Slices:
        """Pieces that lie in the cells `first` to `last`; those at the ends may be cut."""
        found: list[Slices] = []
        for epoch in range(first // self.epoch_cells, (last - 1) // self.epoch_cells + 1):
            order, starts = self._epoch(epoch)
            base = epoch * self.epoch_cells
            begin, end = max(first - base, 0), min(last - base, self.epoch_cells)
            low = np.searchsorted(starts, begin, side="right") - 1
            high = np.searchsorted(starts, end, side="left")
            chosen, begun = order[low:high], starts[low:high]
            skip = np.maximum(begin - begun, 0)
            stop = np.minimum(begun + self.sizes[chosen], end)
            found.append(Slices(chosen, skip, stop - begun - skip))
        return Slices.joined(found)


class Pieces:
    """Documents as pieces of at most `context` cells, every transition fresh in one piece.

    A document of n tokens has n - 1 cells; neighbouring pieces share the token at which they meet.
    With `overlap`, a piece first reads that many cells of the piece before it; these are context
    only and no piece trains them again.

    Attributes:
        document, start, sizes: [pieces] document of each, its first fresh cell, how many it has.

    Raises:
        InputError: an overlap that leaves no room for fresh cells.
    """

    def __init__(self, store: Store, documents: np.ndarray, context: int, overlap: int = 0):
        if not 0 <= overlap < context:
            raise InputError(
                f"data.overlap={overlap} leaves nothing of a context of {context} cells: write "
                f"a number from 0 to {context - 1}"
            )
        self.store, self.context, self.overlap = store, context, overlap
        fresh = context - overlap
        cells = np.maximum(np.asarray(store.lengths)[documents] - 1, 0)
        # The first piece has nothing before it and is fresh throughout.
        counts = np.where(cells > 0, 1 + np.maximum(-(-(cells - context) // fresh), 0), 0)
        owner = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.document = documents[owner]
        self.start = np.where(number > 0, number * fresh + overlap, 0)
        self.sizes = np.minimum(np.where(number > 0, fresh, context), cells[owner] - self.start)

    def __len__(self) -> int:
        return len(self.sizes)

    def stretches(self, parts: Slices) -> Stretches:
        """Where the tokens of parts of pieces lie, behind their context."""
        start = self.start[parts.pieces] + parts.skip
        before = np.minimum(np.minimum(self.overlap, start), self.context - parts.take)
        first = self.store.offsets[self.document[parts.pieces]] + start - before
        return Stretches(first, parts.take + before, before)

    def whole(self, pieces: np.ndarray) -> Slices:
        """All cells of each of the pieces."""
        return Slices(pieces, np.zeros(len(pieces), np.int64), self.sizes[pieces])


@dataclass(frozen=True)
class Stretches:
    """Neighbouring cells of a store.

    Attributes:
        first, cells, before: [n] the token each begins at, how many cells it has, and how many of
            these are context only.
    """

    first: np.ndarray
    cells: np.ndarray
    before: np.ndarray

    def batch(self, store: Store) -> Batch:
        """Each stretch as a document whose cells predict the token that follows them.

        All tokens are fetched at once: a loop over documents costs ten times as much.
        """
        begins = np.cumsum(self.cells) - self.cells
        within = np.arange(int(self.cells.sum())) - np.repeat(begins, self.cells)
        at = np.repeat(self.first, self.cells) + within
        tokens = np.asarray(store.tokens)
        trained = np.ones(len(at), bool) if store.mask is None else np.asarray(store.mask)[at + 1]
        if self.before.any():
            trained &= within >= np.repeat(self.before, self.cells)
        return Batch(
            tokens=torch.from_numpy(tokens[at].astype(np.int64)),
            lengths=tuple(self.cells.tolist()),
            targets=torch.from_numpy(tokens[at + 1].astype(np.int64)),
            streams={"loss_weights": torch.from_numpy(trained.astype(np.float32))},
        )


class DocumentSource:
    """Documents in pieces of at most `context` cells; `batch_tokens` counts their fresh cells."""

    depends_on_number_alone = True

    def __init__(
        self,
        store: Store,
        batch_tokens: int | StepCells,
        seed: int,
        context: int,
        overlap: int = 0,
    ):
        steps = StepCells.of(batch_tokens)
        self.batch_tokens = steps.batch_tokens
        # A piece longer than a step would leave some steps without any piece.
        context = min(context, steps.least)
        self.pieces = Pieces(store, np.arange(len(store)), context, overlap)
        self._stream = EndlessStream(self.pieces.sizes, steps, seed)

    @property
    def steps_per_epoch(self) -> int:
        return self._stream.step_cells.steps_for(self._stream.epoch_cells)

    @property
    def cells_per_epoch(self) -> int:
        return self._stream.epoch_cells

    def batch(self, step: int) -> Batch:
        parts = self.pieces.whole(np.array(self._stream.at(step), np.int64))
        return self.pieces.stretches(parts).batch(self.pieces.store)

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """Nothing to restore: the batch depends on the step alone."""


class ExampleSource:
    """Whole examples with their loss masks (conversations), never cut.

    `batch_tokens` should not be below the longest example; where it is, it is raised to it.
    """

    depends_on_number_alone = True

    def __init__(self, store: Store, batch_tokens: int, seed: int):
        sizes = np.asarray(store.lengths) - 1
        self.store = store
        self.batch_tokens = max(batch_tokens, int(sizes.max(initial=1)))
        self._stream = EndlessStream(sizes, self.batch_tokens, seed)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._stream.epoch_cells / self.batch_tokens)

    @property
    def cells_per_epoch(self) -> int:
        return self._stream.epoch_cells

    def batch(self, step: int) -> Batch:
        chosen = np.array(self._stream.at(step), np.int64)
        none = np.zeros(len(chosen), np.int64)
        return Stretches(self.store.offsets[chosen], self._stream.sizes[chosen], none).batch(
            self.store
        )

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """Nothing to restore: the batch depends on the step alone."""


class PairSource:
    """Comparisons: examples 2i (chosen) and 2i + 1 (rejected), kept together by `group`.

    With `margins`, rows of the store may carry a `margin`: by how much the chosen is better.
    """

    depends_on_number_alone = True

    def __init__(self, store: Store, pairs_per_step: int, seed: int, margins: bool = False):
        pairs = len(store) // 2
        self.store, self.pairs_per_step, self.margins = store, pairs_per_step, margins
        self._stream = EndlessStream(np.ones(pairs, np.int64), pairs_per_step, seed)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._stream.epoch_cells / self.pairs_per_step)

    @property
    def most_cells(self) -> int:
        """Cells that no batch has more of."""
        return 2 * self.pairs_per_step * int(np.asarray(self.store.lengths).max(initial=1))

    def batch(self, step: int) -> Batch:
        return pair_batch(self.store, self._stream.at(step), self.margins)

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """Nothing to restore: the batch depends on the step alone."""


def pair_batch(store: Store, pairs: list[int], margins: bool = False) -> Batch:
    """Rows of the given pairs, chosen before rejected; `group` counts the pairs of the batch."""
    examples = [store[2 * pair + side] for pair in pairs for side in (0, 1)]
    batch = Batch.rows(examples, [i // 2 for i in range(len(examples))])
    if margins:
        values = [float(store.row(2 * pair).get("margin", 0.0)) for pair in pairs for _ in (0, 1)]
        batch.documents["margins"] = torch.tensor(values)
    return batch
