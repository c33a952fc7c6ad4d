"""Which device a run uses, and how much memory it has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fourstage.errors import InputError, MachineError

if TYPE_CHECKING:
    import torch

CHOICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(choice: str = "auto") -> torch.device:
    """The device for `choice`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: `choice` is not a known device.
        MachineError: the device was asked for and is not there.
    """
    import torch

    if choice not in CHOICES:
        raise InputError(f"device={choice!r} is not known: write one of {', '.join(CHOICES)}")
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if choice == "auto":
        choice = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[choice]:
        raise MachineError(f"device={choice}: this machine has none; write device=auto")
    if choice == "cuda":
        # Batches differ in size: pages that grow leave no holes. Read when memory is first taken.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(choice)


def memory_of(device: torch.device) -> float | None:
    """Bytes of memory of one accelerator; None where the rules do not plan with it."""
    import torch

    if device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory)
