"""The part of a parameter that this process holds, where it is sharded (FSDP2, tensor parallel)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from fourstage.parallel.placement import local


def local_gradient(parameter: Tensor) -> Tensor:
    """This process's own part of the gradient, which must have been computed."""
    assert parameter.grad is not None
    return local(parameter.grad)


def whole(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which every process gives its own part, gathered; `like` says how it is cut."""
    return _spread(part, like, like.shape).full_tensor() if isinstance(like, DTensor) else part


def own_part(full: Tensor, like: Tensor) -> Tensor:
    """What of a tensor that every process holds whole is this process's; nothing is sent."""
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
