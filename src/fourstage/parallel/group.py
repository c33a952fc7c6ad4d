"""The processes that train one model together, and the sums they share.

Every process holds the whole model and sees the whole batch of a step; it works on its share of the
micro-batches, and gradients are summed. The update is that of one process, within rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")

# The others wait at a sum while one process prepares data or measures.
_PATIENCE = timedelta(hours=24)
# Gradients travel in flat buckets: few large messages, without a second copy of all of them.
_BUCKET_ELEMENTS = 16_000_000


class Group:
    """`world_size` processes, of which this one is `rank`; a single process needs no set-up."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"):
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)

    @classmethod
    def from_environment(cls, device: torch.device | str = "cpu") -> Group:
        """The group torchrun describes (RANK, WORLD_SIZE, LOCAL_RANK); a single process without it.

        nccl carries the tensors of CUDA devices, gloo those of the CPU.
        """
        device = torch.device(device)
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls(device=device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`, dealt out in turn."""
        return items[self.rank :: self.world_size]

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Sums each tensor over the processes, in place."""
        if self.world_size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Sums each number over the processes, in float64."""
        if self.world_size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return values.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.sum_numbers([float(flag)])[0] > 0

    def broadcast(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Gives every process the tensors of `source`, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, source)

    def broadcast_number(self, number: float, source: int = 0) -> float:
        """The number that `source` holds."""
        return self.sum_numbers([number if self.rank == source else 0.0])[0]

    def agrees(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are the same on every process, judged by their sums and norms."""
        if self.world_size == 1:
            return True
        with torch.no_grad():
            norms = torch.stack(torch._foreach_norm(list(tensors))).sum()
            totals = torch.stack([tensor.sum() for tensor in tensors]).sum()
        marks = torch.stack([norms, totals, -norms, -totals]).double()
        dist.all_reduce(marks, op=dist.ReduceOp.MAX)
        highest, negated_lowest = marks.tolist()[:2], marks.tolist()[2:]
        return all(a == -b for a, b in zip(highest, negated_lowest, strict=True))

    def close(self) -> None:
        """Leaves the group; a single process has none to leave."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type, up to the size of a bucket."""
    bucket: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        full = elements + tensor.numel() > _BUCKET_ELEMENTS
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, elements = [], 0
        bucket.append(tensor)
        elements += tensor.numel()
    if bucket:
        yield bucket
