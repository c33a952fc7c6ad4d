"""Processes that work on one thing together, and the sums they share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

Item = TypeVar("Item")

# The others wait at a sum while one process prepares data or measures.
PATIENCE = timedelta(hours=24)
# Gradients travel in flat buckets: few large messages, without a second copy of all of them.
_BUCKET_ELEMENTS = 16_000_000


class Group:
    """`world_size` processes, of which this one is `rank`; a single process needs no set-up.

    Attributes:
        handle: torch's group; None for all processes.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        handle: Any = None,
    ):
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)
        self.handle = handle

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
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            store, rank, world_size = next(rendezvous("env://", timeout=PATIENCE))
            dist.init_process_group(
                backend,
                store=_of_this_start(store),
                rank=rank,
                world_size=world_size,
                timeout=PATIENCE,
            )
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def part(self, members: Sequence[Sequence[int]]) -> Group:
        """The one of several groups of ranks that this process is in; every process calls it."""
        found = None
        for ranks in members:
            if len(ranks) == 1:
                handle = None
            elif len(ranks) == self.world_size:
                handle = self.handle
            else:
                handle = dist.new_group(list(ranks), timeout=PATIENCE)
            if self.rank in ranks:
                found = Group(list(ranks).index(self.rank), len(ranks), self.device, handle)
        assert found is not None, "every rank is in one of the groups"
        return found

    def beside(self) -> Group:
        """The same processes with sums of their own on the CPU, for a thread; all call it."""
        if self.world_size == 1:
            return Group()
        handle = dist.new_group(backend="gloo", timeout=PATIENCE)
        return Group(self.rank, self.world_size, "cpu", handle)

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
            dist.all_reduce(flat, group=self.handle)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every process, in the order of ranks; all of one shape."""
        if self.world_size == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(found, tensor.contiguous(), group=self.handle)
        return found

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Sums each number over the processes, in float64."""
        if self.world_size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values, group=self.handle)
        return values.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.sum_numbers([float(flag)])[0] > 0

    def lowest(self, number: float) -> float:
        """The smallest of the processes' numbers."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MIN, group=self.handle)
        return value.item()

    def collect(
        self, mine: Sequence[Tensor], count: int, dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """The rows of all processes, in order and on the CPU, where `share` dealt out `count`.

        Args:
            mine: this process's rows, each [n] of its own length.
        """
        if self.world_size == 1:
            return list(mine)
        lengths = torch.zeros(count, dtype=torch.long)
        lengths[self.rank :: self.world_size] = torch.tensor([len(row) for row in mine])
        lengths = lengths.to(self.device)
        dist.all_reduce(lengths, group=self.handle)
        # Every row is filled by one process and zero on the others: the sum is exact.
        rows = torch.zeros(int(lengths.sum()), dtype=dtype, device=self.device)
        rows = rows.split(lengths.tolist())
        for row, own in zip(self.share(rows), mine, strict=True):
            row.copy_(own)
        self.all_reduce_sum(rows)
        return [row.cpu() for row in rows]

    def broadcast(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Gives every process the tensors of `source`, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, group=self.handle, group_src=source)

    def broadcast_number(self, number: float, source: int = 0) -> float:
        """The number that `source` holds."""
        return self.sum_numbers([number if self.rank == source else 0.0])[0]

    def tell(self, value: Any) -> Any:
        """The JSON value that the process which writes has, on every process."""
        if self.world_size == 1:
            return value
        text = json.dumps(value).encode() if self.writes else b""
        size = int(self.broadcast_number(len(text)))
        sent = torch.zeros(size, dtype=torch.uint8, device=self.device)
        if self.writes:
            sent.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self.broadcast([sent])
        return json.loads(sent.cpu().numpy().tobytes())

    def agrees(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are the same on every process, judged by their sums and norms."""
        if self.world_size == 1 or not tensors:
            return True
        with torch.no_grad():
            norms = torch.stack(torch._foreach_norm(list(tensors))).sum()
            totals = torch.stack([tensor.sum() for tensor in tensors]).sum()
        marks = torch.stack([norms, totals, -norms, -totals]).double()
        dist.all_reduce(marks, op=dist.ReduceOp.MAX, group=self.handle)
        highest, negated_lowest = marks.tolist()[:2], marks.tolist()[2:]
        return all(a == -b for a, b in zip(highest, negated_lowest, strict=True))

    def close(self) -> None:
        """Leaves the group; a single process has none to leave."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _of_this_start(store: dist.Store) -> dist.Store:
    """The part of torchrun's store that belongs to this start of the processes.

    torchrun keeps its store over restarts, and addresses of processes that are gone would be read
    from it (https://github.com/pytorch/pytorch/issues/167288). Hosts count restarts each for
    themselves: where there are several, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives each start a
    store of its own.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


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
