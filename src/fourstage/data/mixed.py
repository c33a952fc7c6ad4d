"""A source of several sources, each with its share of the tokens drawn, at every step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fourstage.data.batch import Batch
from fourstage.data.interleaving import Block, Schedule, interleave
from fourstage.data.mixture import Mix
from fourstage.data.sources import EndlessStream, Pieces, Slices, Stretches
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.randomness import seed_for
from fourstage.recipe.ramp import StepCells

_NOTHING = Slices.joined([])


def cells_by_source(
    lengths: np.ndarray, sources: np.ndarray, names: Sequence[str]
) -> dict[str, int]:
    """Cells an epoch of each source has: a document of n tokens has n - 1.

    Args:
        lengths, sources: [documents] tokens of each document, and which of `names` it is of.
    """
    cells = np.zeros(len(names), np.int64)
    np.add.at(cells, np.asarray(sources), np.maximum(np.asarray(lengths) - 1, 0))
    return dict(zip(names, cells.tolist(), strict=True))


class MixedSource:
    """Documents of several sources, each with its share of the tokens drawn, at every step.

    What has been drawn of a source up to a step differs from its share of all that has been drawn
    by less than `context` tokens (for contexts beyond 4 cells for each source and phase). The run
    is cut into blocks that have exact shares; within a block whole pieces follow each other as
    `interleave` has them. Only pieces that lie across the end of a block are cut, at most one of a
    source, less than one of 64.

    Args:
        sources: [documents] which of `names` each document of the store is of.
        mix: shares of the sources; phases are parts of `total_steps`.
        context: most cells of a piece.
        overlap: cells that a piece reads again of the one before it, beside its fresh ones.

    Raises:
        InputError: the mix names a source that has no text to draw from.
    """

    depends_on_number_alone = True

    def __init__(
        self,
        store: Store,
        sources: np.ndarray,
        names: Sequence[str],
        mix: Mix,
        batch_tokens: int | StepCells,
        seed: int,
        context: int,
        total_steps: int,
        overlap: int = 0,
    ):
        self._store = store
        self._steps, self.names = StepCells.of(batch_tokens), list(mix.tokens)
        context = min(context, self._steps.least)
        numbers = {name: number for number, name in enumerate(names)}
        self._pieces: list[Pieces] = []
        self._streams: list[EndlessStream | None] = []
        for name, share in mix.shares.items():
            documents = np.flatnonzero(np.asarray(sources) == numbers.get(name, -1))
            pieces = Pieces(store, documents, context, overlap)
            if share > 0 and not len(pieces):
                raise InputError(
                    f"data.mixture: {name} has no text to draw from; give it weight 0 or "
                    "other files"
                )
            own_seed = seed_for(seed, "source", name)
            self._pieces.append(pieces)
            self._streams.append(
                EndlessStream(pieces.sizes, self._steps, own_seed) if len(pieces) else None
            )
        self._schedule = Schedule(mix, self._steps.begin(total_steps), context)
        # A step lies in one or two blocks; one more serves a look at another step.
        self._block = lru_cache(maxsize=3)(self._ordered)

    def _ordered(self, first: int) -> tuple[Block, np.ndarray, Slices, np.ndarray]:
        """The block that starts at a cell: sources, parts and starts of its pieces, in order."""
        block = self._schedule.at(first)
        brought = [
            stream.slices(int(low), int(high)) if stream is not None and high > low else _NOTHING
            for stream, low, high in zip(self._streams, block.before, block.after, strict=True)
        ]
        order = interleave([part.take for part in brought])
        joined = Slices.joined(brought)
        # Where the pieces, listed source by source, stand in the order.
        place = np.argsort(np.argsort(order, kind="stable"), kind="stable")
        parts = Slices(joined.pieces[place], joined.skip[place], joined.take[place])
        return block, order, parts, block.first + np.cumsum(parts.take) - parts.take

    def at(self, step: int) -> list[tuple[int, int, int, int]]:
        """Source, piece, cells skipped and cells taken of what starts in the cells of `step`."""
        cell, last = self._steps.span(step)
        found: list[tuple[int, int, int, int]] = []
        while cell < last:
            block, order, parts, starts = self._block(self._schedule.at(cell).first)
            low, high = np.searchsorted(starts, (cell, last), side="left")
            columns = (order, parts.pieces, parts.skip, parts.take)
            found += zip(*(column[low:high].tolist() for column in columns), strict=True)
            cell = block.last
        return found

    def batch(self, step: int) -> Batch:
        found = np.array(self.at(step), np.int64).reshape(-1, 4)
        columns = np.zeros((3, len(found)), np.int64)
        for number, pieces in enumerate(self._pieces):
            own = found[:, 0] == number
            stretches = pieces.stretches(Slices(*found[own, 1:].T))
            columns[:, own] = stretches.first, stretches.cells, stretches.before
        return Stretches(*columns).batch(self._store)

    def drawn(self, steps: int) -> dict[str, tuple[int, float]]:
        """Tokens drawn of each source in the first `steps` steps, and how many epochs that is."""
        cell = self._steps.begin(steps)
        block, order, parts, starts = self._block(self._schedule.at(cell).first)
        high = int(np.searchsorted(starts, cell, side="left"))
        within = np.zeros(len(self.names), np.int64)
        np.add.at(within, order[:high], parts.take[:high])
        tokens = (block.before + within).tolist()
        return {
            name: (count, count / stream.epoch_cells if stream else 0.0)
            for name, count, stream in zip(self.names, tokens, self._streams, strict=True)
        }

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        """Nothing to restore: the batch depends on the step alone."""
