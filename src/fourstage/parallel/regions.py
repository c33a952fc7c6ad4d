"""The sums and gathers at the borders of matrix products that several processes share.

Each is a pair: what happens to activations forwards, and to their gradients backwards (Shoeybi et
al., *Megatron-LM*, 2019, section 3; Korthikanti et al., *Reducing Activation Recomputation in Large
Transformer Models*, 2022, section 4.2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fourstage.parallel.group import Group

Change: TypeAlias = Callable[[Tensor], Tensor]


class Region:
    """What lies between two borders, on the processes of `group`.

    Attributes:
        sequence: whether outside of the region each process holds its own cells only.
    """

    def __init__(self, group: Group, sequence: bool = False):
        self.group = group
        self.sequence = sequence

    def enter(self, x: Tensor) -> Tensor:
        """Before a product of which each process has some rows: [cells, width], the same on all.

        With `sequence` the cells of all come together, those that fill up the last part included.
        """
        if self.sequence:
            return _Border.apply(x, self._gathered, self._own_sum)
        return self.same(x)

    def leave(self, part: Tensor) -> Tensor:
        """After a product of which each process has some columns: the sum of the parts.

        With `sequence` each process keeps its own cells.
        """
        if self.sequence:
            return _Border.apply(self._filled_up(part), self._own_sum, self._gathered)
        return self.summed(part)

    def own_cells(self, x: Tensor) -> Tensor:
        """[cells, width], the same on all -> this process's cells, with zeros behind the last."""
        return _Border.apply(self._filled_up(x), self._own, self._gathered)

    def all_cells(self, x: Tensor, cells: int) -> Tensor:
        """The inverse of `own_cells`, where all processes go on with the same work."""
        return _Border.apply(x, self._gathered, self._own)[:cells]

    def same(self, x: Tensor) -> Tensor:
        """`x`, used by each process for another part of what follows."""
        return _Border.apply(x, _alike, self._summed)

    def summed(self, x: Tensor) -> Tensor:
        """The sum of the parts, wherever `sequence` stands."""
        return _Border.apply(x, self._summed, _unchanged)

    def joined(self, x: Tensor) -> Tensor:
        """The parts of the last axis side by side, where all go on with the same work."""
        last = x.dim() - 1
        return _Border.apply(x, partial(self._gathered, axis=last), partial(self._own, axis=last))

    def _filled_up(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, -len(x) % self.group.world_size))

    def _summed(self, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x, group=self.group.handle)
        return x

    def _gathered(self, x: Tensor, axis: int = 0) -> Tensor:
        return torch.cat(self.group.all_gather(x), dim=axis)

    def _own_sum(self, x: Tensor) -> Tensor:
        own = x.new_empty(len(x) // self.group.world_size, *x.shape[1:])
        dist.reduce_scatter_tensor(own, x.contiguous(), group=self.group.handle)
        return own

    def _own(self, x: Tensor, axis: int = 0) -> Tensor:
        return x.chunk(self.group.world_size, dim=axis)[self.group.rank].contiguous()


def _alike(x: Tensor) -> Tensor:
    return x.view_as(x)


def _unchanged(gradient: Tensor) -> Tensor:
    return gradient


class _Border(torch.autograd.Function):
    """`forwards` of activations; `backwards` of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, forwards: Change, backwards: Change) -> Tensor:
        ctx.backwards = backwards
        return forwards(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        return ctx.backwards(gradient), None, None
