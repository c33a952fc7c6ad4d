"""What a training step holds: counted tensor by tensor, its peak by the allocator's record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.objectives.objective import Objective
from fourstage.precision import autocast


@dataclass(frozen=True)
class Held:
    """Bytes on one device.

    Attributes:
        frozen: of models that are only read.
        activations: what one micro-batch keeps for its backward pass, logits included.
        peak: the most that was there at once in a step.
    """

    weights: int
    gradients: int
    optimiser: int
    frozen: int
    activations: int
    peak: int

    def to_json(self) -> dict[str, int]:
        return dict(vars(self))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of some tensors, each counted once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def activation_bytes(module: nn.Module, objective: Objective, micro: Batch) -> int:
    """Bytes that a forward pass keeps for its backward pass, beside weights and batch."""
    device = next(module.parameters()).device
    micro = micro.to(device)
    known = [*module.parameters(), *module.buffers(), micro.tokens, micro.targets]
    known += [*micro.streams.values(), *micro.documents.values()]
    outside = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in outside:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(device):
        terms, _ = objective.sums(module, micro)
    del terms
    return sum(kept.values())


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that `call` holds at once beside what was there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler's library writes a line at its start and end unless it is told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as record:
        call()
    events = [each for each in record.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
