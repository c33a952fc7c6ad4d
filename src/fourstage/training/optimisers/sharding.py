"""The part of a parameter that this process holds, where it is cut (tensor parallel) or sharded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from fourstage.parallel.group import Group
from fourstage.parallel.placement import local
from fourstage.parallel.tensor import joined, slice_of


@dataclass(frozen=True)
class Slices:
    """Parameters of which each process of a group holds an equal slice.

    Attributes:
        axes: name -> the axis that is cut; the others are not.
    """

    axes: Mapping[str, int] = field(default_factory=dict)
    group: Group = field(default_factory=Group)


def local_gradient(parameter: Tensor) -> Tensor:
    """This process's own part of the gradient, which must have been computed."""
    assert parameter.grad is not None
    return local(parameter.grad)


def whole(part: Tensor, like: Tensor, axis: int | None, group: Group) -> Tensor:
    """The tensor of which every process gives its own part, gathered.

    Args:
        like: the parameter, which says how its slice is sharded.
        axis: along which the slices of `group` lie; None where nothing is cut.
    """
    if isinstance(like, DTensor):
        part = _spread(part, like, like.shape).full_tensor()
    return joined(part, axis, group)


def own_part(full: Tensor, like: Tensor, axis: int | None, group: Group) -> Tensor:
    """What of a tensor that every process holds whole is this process's; nothing is sent."""
    full = slice_of(full, axis, group).contiguous()
    if not isinstance(like, DTensor):
        return full
    mesh = like.device_mesh
    everywhere = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=like.placements).to_local()


def zeros_beside(like: Tensor, last: int, dtype: torch.dtype) -> Tensor:
    """Zeros cut as `like` is, whose last axis has `last` elements on each process."""
    part = local(like)
    zeros = torch.zeros(*part.shape[:-1], last, dtype=dtype, device=part.device)
    if not isinstance(like, DTensor):
        return zeros
    axis = like.dim() - 1
    times = 1
    for number, placement in enumerate(like.placements):
        if placement.is_shard(axis):
            times *= like.device_mesh.size(number)
    return _spread(zeros, like, (*like.shape[:-1], last * times))


def _spread(part: Tensor, like: DTensor, shape: Sequence[int]) -> DTensor:
    size = torch.Size(shape)
    stride = torch.empty(size, device="meta").stride()
    mesh = like.device_mesh
    return DTensor.from_local(
        part, mesh, like.placements, run_check=False, shape=size, stride=stride
    )
