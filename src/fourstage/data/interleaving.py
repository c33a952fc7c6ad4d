"""Interleaving: an order of the sources' pieces in which every source keeps its share throughout.

Nothing here reads data: shares are numbers, pieces are their sizes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from fourstage.data.mixture import Mix

# A block has at least so many rows for each source: a source cuts one piece at each end of it.
_ROWS_OF_A_BLOCK = 64
# A rare source brings so many rows to a block, while the block stays below so many cells.
_ROWS_OF_A_SOURCE = 8
_LARGE_BLOCK = 2**27


@dataclass(frozen=True)
class Block:
    """Cells `first` to `last` of a run, and the cells each source brings to them.

    Attributes:
        before, after: [sources] int64, cells of each source drawn at the start and at the end.
    """

    first: int
    last: int
    before: np.ndarray
    after: np.ndarray


class Schedule:
    """A run as blocks, at whose ends each source has its share to within one cell a phase.

    Blocks are found without walking there. No source loses cells from one to the next: it gains at
    least two a block, or the block is the only one of its phase.
    """

    def __init__(self, mix: Mix, run_tokens: int, context: int):
        bounds = [round(phase.until * run_tokens) for phase in mix.phases[:-1]]
        rows = [
            (start, phase)
            for start, stop, phase in zip([0, *bounds], [*bounds, None], mix.phases, strict=True)
            if stop is None or stop > start
        ]
        self.starts = [start for start, _ in rows]
        cumulated = [np.cumsum(phase.shares) for _, phase in rows]
        # Divided by its end, so that sources of no share behind the last get exactly nothing.
        self._cumulated = [part / part[-1] for part in cumulated]
        self._cells = [_block_cells(np.array(phase.shares), context) for _, phase in rows]
        self._bases = [np.zeros(len(mix.tokens), np.int64)]
        for phase, stop in enumerate(self.starts[1:]):
            self._bases.append(self._drawn(phase, stop - self.starts[phase]))

    def _drawn(self, phase: int, cells: int) -> np.ndarray:
        """[sources] cells drawn of each when `cells` of a phase are; they sum up."""
        parts = np.rint(self._cumulated[phase] * cells).astype(np.int64)
        return self._bases[phase] + np.diff(parts, prepend=0)

    def at(self, cell: int) -> Block:
        """The block that holds a cell of the run."""
        phase = bisect_right(self.starts, cell) - 1
        start, cells = self.starts[phase], self._cells[phase]
        number, stop = (cell - start) // cells, None
        if phase + 1 < len(self.starts):
            length = self.starts[phase + 1] - start
            # The last block of a phase takes what is left over.
            count = max(1, length // cells)
            number = min(number, count - 1)
            stop = length if number == count - 1 else None
        first, last = number * cells, stop or (number + 1) * cells
        return Block(
            start + first, start + last, self._drawn(phase, first), self._drawn(phase, last)
        )


def _block_cells(weights: np.ndarray, context: int) -> int:
    """Cells of a block: so many that few pieces are cut, and that the rarest source has some."""
    drawn = weights[weights > 0]
    rarest = float(drawn.min())
    rare = min(_ROWS_OF_A_SOURCE * context / rarest, _LARGE_BLOCK)
    return int(np.ceil(max(_ROWS_OF_A_BLOCK * context * len(drawn), rare, 2 / rarest)))


def interleave(sizes: Sequence[np.ndarray]) -> np.ndarray:
    """The order in which sources bring their pieces, each always close to its share.

    After every piece, what source s has brought differs from its share of the whole by at most
    (1 - 1 / (2 n - 2)) of the largest piece, for n sources. This is the rule of Tijdeman, *The
    Chairman Assignment Problem*, 1980, for pieces of unequal sizes: a piece may come once its
    source would not be ahead by more than that, and among those that may, the one comes first whose
    source would soonest be behind by that much.

    Why it holds: let L be the largest piece, m = L / (2 n - 2), and times the cells brought so far.
    Some piece may always come, since the sources are on average on time and n m <= L. Were piece p,
    to begin by d, late: let t be when the last less urgent piece before it began (or the start).
    The pieces after that one could not come at t, so those of source s are at most
    w_s (d - t - L) + 2 m cells, and L less of p's own before it. With the L of the less urgent one
    that ends by d, as d - t >= 2 L - 2 m and at most n - 1 sources bring 2 m (n - 1) <= L.

    Args:
        sizes: for each source the cells of its pieces, in the order it brings them.

    Returns:
        [pieces] the source of each.
    """
    present = [source for source, own in enumerate(sizes) if len(own)]
    if len(present) < 2:
        return np.repeat(present, [len(sizes[source]) for source in present]).astype(np.int64)
    whole = sum(int(sizes[source].sum()) for source in present)
    largest = max(int(sizes[source].max()) for source in present)
    most = largest * (1 - 1 / (2 * len(present) - 2))
    pieces = {}
    for source in present:
        own = sizes[source]
        ends = np.cumsum(own)
        share = float(ends[-1]) / whole
        earliest = (ends - most) / share - own
        latest = (ends - own + most) / share
        pieces[source] = zip(earliest.tolist(), latest.tolist(), own.tolist(), strict=True)
    return np.array(_served(pieces), np.int64)


def _served(pieces: dict[int, Any]) -> list[int]:
    """Sources in the order served: of the pieces whose earliest time has come, the most urgent."""
    order: list[int] = []
    waiting = [(*next(own), source) for source, own in pieces.items()]
    ready: list[tuple[float, int, int]] = []
    heapify(waiting)
    drawn = 0
    while waiting or ready:
        # One piece may always come; but for rounding errors, its time is not waited for in vain.
        while waiting and (waiting[0][0] <= drawn or not ready):
            _, latest, size, source = heappop(waiting)
            heappush(ready, (latest, source, size))
        _, source, size = heappop(ready)
        order.append(source)
        drawn += size
        following = next(pieces[source], None)
        if following is not None:
            heappush(waiting, (*following, source))
    return order
