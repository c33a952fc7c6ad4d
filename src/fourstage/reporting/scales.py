"""Axes: where a value stands in the drawing, and which round numbers are written beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A map of [low, high] onto [start, end] in drawing units; logarithmic if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, 1e-300))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def texts(self, ticks: Sequence[float]) -> list[str]:
        """The ticks as text; on a logarithmic axis each has its own unit."""
        return [tick_texts([tick])[0] for tick in ticks] if self.log else tick_texts(ticks)

    def ticks(self, count: int) -> list[float]:
        """Up to about `count` round values inside the range."""
        if self.log:
            return log_ticks(self.low, self.high, count)
        return linear_ticks(self.low, self.high, count)


def linear_step(low: float, high: float, count: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that makes about `count` intervals."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * 1.45 >= rough)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    step = linear_step(low, high, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / count))
    factors = (1, 2, 5) if last - first <= 2 else (1, 3) if count >= 2 * (last - first) else (1,)
    values = [
        factor * 10.0**power
        for power in range(first, last + 1)
        if (power - first) % every == 0
        for factor in factors
    ]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def padded(
    values: Sequence[float], *, zero: bool = False, share: float = 0.06
) -> tuple[float, float]:
    """A range that holds all values with some air; from zero when `zero` and none is negative."""
    low, high = min(values), max(values)
    if zero and low >= 0:
        low = 0.0
    if high - low < 1e-12 * max(abs(high), abs(low), 1e-9):
        air = abs(high) * 0.1 or 1.0
        return low - air, high + air
    air = (high - low) * share
    return (low if zero and low == 0 else low - air), high + air


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """The ticks as text: the same number of decimals throughout, `k`/`M`/`B` for large ones."""
    if not ticks:
        return []
    largest = max(abs(tick) for tick in ticks)
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if largest >= size * (10 if size == 1e3 else 1):
            scaled = [tick / size for tick in ticks]
            digits = _decimals(scaled)
            return ["0" if tick == 0 else f"{tick:.{digits}f}{letter}" for tick in scaled]
    if 0 < largest < 1e-4:
        return ["0" if tick == 0 else f"{tick:.0e}".replace("e-0", "e-") for tick in ticks]
    digits = _decimals(ticks)
    return [f"{tick:.{digits}f}".replace("-", "\u2212") for tick in ticks]


def _decimals(values: Sequence[float]) -> int:
    """The fewest decimals with which the values are told apart exactly."""
    for digits in range(5):
        if all(abs(round(value, digits) - value) <= 1e-9 * max(1, abs(value)) for value in values):
            return digits
    return 5
