"""The speed of the machine's own matrix product: what a training step can at best reach."""

from __future__ import annotations

import time

import torch

from fourstage.planning.hardware import ACCELERATORS
from fourstage.precision import autocast

_SIZES = {"cpu": 1024, "mps": 2048, "cuda": 8192}
_SECONDS = 0.3


def matmul_flops_per_second(device: torch.device, seconds: float = _SECONDS) -> float:
    """Operations a second of square products in the precision that training computes in.

    The best of several: others on the machine only slow it down.
    """
    size = _SIZES[device.type]
    left, right = torch.randn(2, size, size, device=device).unbind()
    best, until = float("inf"), time.perf_counter() + seconds
    with torch.no_grad(), autocast(device):
        while time.perf_counter() < until or best == float("inf"):
            started = time.perf_counter()
            float((left @ right)[0, 0])
            taken = time.perf_counter() - started
            best = min(best, taken)
    return 2.0 * size**3 / best


def data_sheet_flops(device: torch.device) -> float | None:
    """Peak operations a second of this accelerator by its vendor; None for what is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).replace(" ", "").replace("-", "").lower()
    known = [each for key, each in ACCELERATORS.items() if key.replace("-", "") in name]
    return max(known, key=lambda each: len(each.name)).peak_flops if known else None
