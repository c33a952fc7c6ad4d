"""The sums and gathers at the borders of matrix products that several processes share.

Each is a pair: what happens to activations forwards, and to their gradients backwards (Shoeybi et
al., *Megatron-LM*, 2019, section 3; Korthikanti et al., *Reducing Activation Recomputation in Large
Transformer Models*, 2022, section 4.2.2).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fourstage.parallel.group import Group


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
        return _AllCells.apply(x, self.group) if self.sequence else _Same.apply(x, self.group)

    def leave(self, part: Tensor) -> Tensor:
        """After a product of which each process has some columns: the sum of the parts.

        With `sequence` each process keeps its own cells.
        """
        if self.sequence:
            return _SumOfOwnCells.apply(_filled_up(part, self.group), self.group)
        return _Sum.apply(part, self.group)

    def own_cells(self, x: Tensor) -> Tensor:
        """[cells, width], the same on all -> this process's cells, with zeros behind the last."""
        return _OwnCells.apply(_filled_up(x, self.group), self.group)

    def all_cells(self, x: Tensor, cells: int) -> Tensor:
        """The inverse of `own_cells`, where all processes go on with the same work."""
        return _Joined.apply(x, self.group, 0)[:cells]

    def same(self, x: Tensor) -> Tensor:
        """`x`, used by each process for another part of what follows."""
        return _Same.apply(x, self.group)

    def summed(self, x: Tensor) -> Tensor:
        """The sum of the parts, wherever `sequence` stands."""
        return _Sum.apply(x, self.group)

    def joined(self, x: Tensor) -> Tensor:
        """The parts of the last axis side by side, where all go on with the same work."""
        return _Joined.apply(x, self.group, x.dim() - 1)


def _filled_up(x: Tensor, group: Group) -> Tensor:
    return F.pad(x, (0, 0, 0, -len(x) % group.world_size))


def _summed(x: Tensor, group: Group) -> Tensor:
    x = x.contiguous().clone()
    dist.all_reduce(x, group=group.handle)
    return x


def _gathered(x: Tensor, group: Group, axis: int = 0) -> Tensor:
    return torch.cat(group.all_gather(x), dim=axis)


def _own_sum(x: Tensor, group: Group) -> Tensor:
    own = x.new_empty(len(x) // group.world_size, *x.shape[1:])
    dist.reduce_scatter_tensor(own, x.contiguous(), group=group.handle)
    return own


def _own(x: Tensor, group: Group, axis: int = 0) -> Tensor:
    return x.chunk(group.world_size, dim=axis)[group.rank].contiguous()


class _Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        return _summed(gradient, ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        return gradient, None


class _AllCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        return _own_sum(gradient, ctx.group), None


class _SumOfOwnCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _own_sum(x, group)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        return _gathered(gradient, ctx.group), None


class _OwnCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _own(x, group)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        return _gathered(gradient, ctx.group), None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group, axis: int) -> Tensor:
        ctx.group, ctx.axis = group, axis
        return _gathered(x, group, axis)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        return _own(gradient, ctx.group, ctx.axis), None, None
