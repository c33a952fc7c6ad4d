"""Accelerators by name: peak dense bf16 operations a second, and memory (vendors' data sheets)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fourstage.errors import InputError, nearest

# What LLaMA reached on A100s is 0.45-0.55 of the peak; 0.40 leaves room for a first run.
USUAL_UTILISATION = 0.40


@dataclass(frozen=True)
class Accelerator:
    """One kind of device: peak operations a second in training precision, bytes of memory."""

    name: str
    peak_flops: float
    memory: float


_TABLE = (
    Accelerator("V100", 125e12, 32e9),
    Accelerator("T4", 65e12, 16e9),
    Accelerator("L4", 121e12, 24e9),
    Accelerator("L40S", 362e12, 48e9),
    Accelerator("A10", 125e12, 24e9),
    Accelerator("A100", 312e12, 80e9),
    Accelerator("A100-40GB", 312e12, 40e9),
    Accelerator("H100", 989e12, 80e9),
    Accelerator("H200", 989e12, 141e9),
    Accelerator("B200", 2250e12, 180e9),
    Accelerator("RTX3090", 71e12, 24e9),
    Accelerator("RTX4090", 165e12, 24e9),
    Accelerator("MI300X", 1307e12, 192e9),
)
ACCELERATORS = {accelerator.name.lower(): accelerator for accelerator in _TABLE}


@dataclass(frozen=True)
class Gpus:
    """A number of equal accelerators and the share of their peak that training reaches."""

    count: int
    accelerator: Accelerator
    utilisation: float = USUAL_UTILISATION

    @property
    def flops(self) -> float:
        """Operations a second that all of them reach together."""
        return self.count * self.accelerator.peak_flops * self.utilisation

    def hours(self, flops: float) -> float:
        """Device-hours of so many operations, summed over the devices."""
        return flops / (self.accelerator.peak_flops * self.utilisation) / 3600

    def cost(self, flops: float, price: float) -> float:
        """Price of so many operations at `price` a device and hour."""
        return self.hours(flops) * price


def parse_gpus(text: str, utilisation: float = USUAL_UTILISATION) -> Gpus:
    """`8xH100`, `8 H100` or `H100`.

    Raises:
        InputError: it is no number of a known accelerator.
    """
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x* ]\s*)?([A-Za-z][\w-]*)\s*", text)
    names = [accelerator.name for accelerator in _TABLE]
    if match is None:
        raise InputError(f"--gpus {text}: write a number and a name, such as 8xH100")
    count, name = int(match.group(1) or 1), match.group(2).lower()
    if count < 1:
        raise InputError(f"--gpus {text}: at least one is needed, such as 1x{match.group(2)}")
    if name not in ACCELERATORS:
        near = nearest(match.group(2).upper(), names)
        raise InputError(f"--gpus {text}: unknown accelerator (known: {', '.join(names)}){near}")
    if not 0 < utilisation <= 1 or not math.isfinite(utilisation):
        raise InputError(
            f"--mfu {utilisation:g}: a share of the peak lies above 0 and at most at 1"
        )
    return Gpus(count, ACCELERATORS[name], utilisation)
