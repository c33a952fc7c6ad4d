"""Where documents stand in a flat batch, and how attention sees them.

A batch is one row of cells, documents back to back, without padding: every matrix product works on
real tokens only. Attention alone needs a document at a time. It gathers documents of similar length
into small rectangles (buckets), in which causality already hides the padding behind each document:
no mask is built and nothing crosses a boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# A bucket is closed when its rectangle would hold more than this share of padding.
_PADDING_ALLOWED = 0.15
_MOST_BUCKETS = 6


@dataclass
class Bucket:
    """Documents `rows` as a rectangle of `rows` x `time` cells."""

    rows: int
    time: int


class Layout:
    """Positions and attention buckets of documents of `lengths` cells laid back to back.

    Attributes:
        positions: [cells] place of each cell in its document, from 0.
        gather: [padded cells] the flat cell that fills each cell of the buckets, or None when the
            batch already is a rectangle; padding repeats a document's last cell.
        scatter: [cells] where each flat cell stands in the buckets.
        starts: [documents + 1] the first cell of each document, and the number of cells.
        room: the least power of two that holds the cells of any document.
        tiles: of flex attention, by window; filled as they are needed (`model.packed`).
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu"):
        self.lengths = tuple(int(length) for length in lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("a layout needs documents of at least one cell")
        sizes = torch.tensor(self.lengths)
        self.starts = _sent(F.pad(sizes.cumsum(0), (1, 0)), device)
        starts = sizes.cumsum(0) - sizes
        self.cells = int(sizes.sum())
        self.room = 1 << (max(self.lengths) - 1).bit_length()
        self.tiles: dict[int, BlockMask] = {}
        owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self.document_ids = _sent(owner, device)
        self.positions = _sent(torch.arange(self.cells) - starts[owner], device)
        self.last_cells = _sent(starts + sizes - 1, device)

    @property
    def buckets(self) -> list[Bucket]:
        return self._rectangles[0]

    @property
    def gather(self) -> Tensor | None:
        return self._rectangles[1]

    @property
    def scatter(self) -> Tensor | None:
        return self._rectangles[2]

    @cached_property
    def _rectangles(self) -> tuple[list[Bucket], Tensor | None, Tensor | None]:
        """Buckets, `gather` and `scatter`: only where attention asks for them."""
        if len(set(self.lengths)) == 1:
            return [Bucket(self.documents, self.lengths[0])], None, None
        sizes, starts, device = torch.tensor(self.lengths), self.starts.cpu(), self.starts.device
        buckets: list[Bucket] = []
        gathered, scatter, offset = [], torch.empty(self.cells, dtype=torch.long), 0
        for group in _buckets(self.lengths):
            rows = torch.tensor(group)
            time = int(sizes[rows].max())
            inside = torch.arange(time)[None, :].minimum(sizes[rows, None] - 1)
            cells = starts[rows, None] + inside
            gathered.append(cells.flatten())
            real = torch.arange(time)[None, :] < sizes[rows, None]
            scatter[cells[real]] = offset + torch.arange(cells.numel()).view_as(cells)[real]
            offset += cells.numel()
            buckets.append(Bucket(len(group), time))
        return buckets, _sent(torch.cat(gathered), device), _sent(scatter, device)

    @property
    def documents(self) -> int:
        return len(self.lengths)

    @property
    def mean_context(self) -> float:
        """Cells a token attends to, on average over the tokens."""
        return sum(n * (n + 1) / 2 for n in self.lengths) / self.cells


def _sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A copy there; on its way to a CUDA device it is not waited for, nor is what runs there."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Documents grouped by length, longest first, each group with little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = [[]]
    real = 0
    for index in order:
        group = groups[-1]
        if group:
            rectangle = lengths[group[0]] * (len(group) + 1)
            padding = 1 - (real + lengths[index]) / rectangle
            if padding > _PADDING_ALLOWED and len(groups) < _MOST_BUCKETS:
                groups.append([])
                real = 0
        groups[-1].append(index)
        real += lengths[index]
    return groups


class _ToBuckets(torch.autograd.Function):
    """Flat cells to bucket cells; padding copies a real cell and sends nothing back."""

    @staticmethod
    def forward(ctx, flat: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        return flat.index_select(0, gather)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        (scatter,) = ctx.saved_tensors
        return gradient.index_select(0, scatter), None, None


class _FromBuckets(torch.autograd.Function):
    """Bucket cells back to flat cells; the gradient of padding is zero."""

    @staticmethod
    def forward(ctx, padded: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        ctx.cells = padded.shape[0]
        return padded.index_select(0, scatter)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        (scatter,) = ctx.saved_tensors
        padded = gradient.new_zeros(ctx.cells, *gradient.shape[1:])
        return padded.index_copy_(0, scatter, gradient), None


def to_buckets(flat: Tensor, layout: Layout) -> list[Tensor]:
    """[cells, ...] -> for each bucket [rows, time, ...]."""
    if layout.gather is not None:
        flat = _ToBuckets.apply(flat, layout.gather, layout.scatter)
    sizes = [bucket.rows * bucket.time for bucket in layout.buckets]
    return [
        part.view(bucket.rows, bucket.time, *flat.shape[1:])
        for part, bucket in zip(flat.split(sizes), layout.buckets, strict=True)
    ]


def from_buckets(parts: list[Tensor], layout: Layout) -> Tensor:
    """The inverse of `to_buckets`, dropping the padding: -> [cells, ...]."""
    flat = torch.cat([part.flatten(0, 1) for part in parts]) if len(parts) > 1 else parts[0]
    if len(parts) == 1:
        flat = flat.flatten(0, 1)
    return flat if layout.scatter is None else _FromBuckets.apply(flat, layout.scatter)
