"""Sources: the batch of a step as a pure function of (seed, step), with no cursor to save.

The data of all epochs form one endless stream: in each epoch every piece once, in an order drawn
from (seed, epoch). Step s takes the pieces that start within cells [s B, (s + 1) B) of that stream,
so it can be found without walking there, whatever was trained before.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from fourstage.data.batch import Batch, Example
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.randomness import permutation


class EndlessStream:
    """Pieces of known sizes in a new order each epoch, cut into steps of `step_cells` cells."""

    def __init__(self, sizes: np.ndarray, step_cells: int, seed: int):
        if len(sizes) == 0 or step_cells < 1:
            raise InputError("there is nothing to train on: the store is empty")
        self.sizes, self.step_cells, self.seed = sizes, step_cells, seed
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
        first, last = step * self.step_cells, (step + 1) * self.step_cells
        pieces: list[int] = []
        for epoch in range(first // self.epoch_cells, (last - 1) // self.epoch_cells + 1):
            order, starts = self._epoch(epoch)
            base = epoch * self.epoch_cells
            low, high = np.searchsorted(starts, (first - base, last - base), side="left")
            pieces += order[low:high].tolist()
        return pieces


class DocumentSource:
    """Documents as pieces of at most `context` cells, every transition of the store in one piece.

    A document of n tokens has n - 1 cells; neighbouring pieces share the token at which they meet.
    """

    def __init__(self, store: Store, batch_tokens: int, seed: int, context: int):
        self.store, self.batch_tokens = store, batch_tokens
        # A piece longer than a step would leave some steps without any piece.
        self.cells = min(context, batch_tokens)
        cells = np.maximum(np.asarray(store.lengths) - 1, 0)
        counts = -(-cells // self.cells)
        self.document = np.repeat(np.arange(len(counts)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self.start = (np.arange(len(self.document)) - first) * self.cells
        sizes = np.minimum(self.cells, cells[self.document] - self.start)
        self._stream = EndlessStream(sizes, batch_tokens, seed)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._stream.epoch_cells / self.batch_tokens)

    @property
    def cells_per_epoch(self) -> int:
        return self._stream.epoch_cells

    def piece(self, index: int) -> Example:
        start = int(self.start[index])
        return self.store.span(int(self.document[index]), start, start + self.cells + 1)

    def batch(self, step: int) -> Batch:
        return Batch.language([self.piece(index) for index in self._stream.at(step)])

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """Nothing to restore: the batch depends on the step alone."""


class ExampleSource:
    """Whole examples with their loss masks (conversations), never cut.

    `batch_tokens` should not be below the longest example; where it is, it is raised to it.
    """

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
        return Batch.language([self.store[index] for index in self._stream.at(step)])

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """Nothing to restore: the batch depends on the step alone."""


class PairSource:
    """Comparisons: examples 2i (chosen) and 2i + 1 (rejected), kept together by `group`.

    With `margins`, rows of the store may carry a `margin`: by how much the chosen is better.
    """

    def __init__(self, store: Store, pairs_per_step: int, seed: int, margins: bool = False):
        pairs = len(store) // 2
        self.store, self.pairs_per_step, self.margins = store, pairs_per_step, margins
        self._stream = EndlessStream(np.ones(pairs, np.int64), pairs_per_step, seed)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._stream.epoch_cells / self.pairs_per_step)

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
