"""When a step's loss or gradient norm is a spike: judged against the steps before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The median distance from the median is this share of a normal distribution's deviation.
_MEDIAN_DISTANCE = 0.6745
# The least deviation: 1% of the usual loss, a quarter of the logarithm of a norm, which has heavy
# tails in small batches. Of nearly equal values any change would be a spike otherwise.
_LEAST_LOSS, _LEAST_LOG_NORM = 0.01, 0.25


@dataclass(frozen=True)
class Spike:
    """A number far above what is usual.

    Attributes:
        cause: "loss" or "gradient_norm".
        usual: the median of the steps before.
        deviations: how far above it the value is, in robust standard deviations.
    """

    cause: str
    value: float
    usual: float
    deviations: float

    def __str__(self) -> str:
        name = self.cause.replace("_", " ")
        return (
            f"{name} {self.value:.4g} is {self.deviations:.1f} deviations above the usual "
            f"{self.usual:.4g}"
        )


class History:
    """Loss and gradient norm of the last `window` steps that were finite, applied or not.

    A step that was left out counts too: where the level has moved for good (other data, other
    lengths), it is the usual one after half a window, and nothing is held back for ever.
    """

    def __init__(
        self, window: int, losses: Iterable[float] = (), gradient_norms: Iterable[float] = ()
    ):
        self.losses = deque(losses, maxlen=window)
        self.gradient_norms = deque(gradient_norms, maxlen=window)

    def add(self, loss: float, gradient_norm: float) -> None:
        self.losses.append(loss)
        self.gradient_norms.append(gradient_norm)

    def clear(self) -> None:
        self.losses.clear()
        self.gradient_norms.clear()

    def spike(self, loss: float, gradient_norm: float, deviations: float) -> Spike | None:
        """The loss, else the gradient norm, if it is more than `deviations` above the usual.

        None until half a window is known. The rule is OLMo-core's (six standard deviations of the
        last 128 steps), with median and median distance in the place of mean and deviation, which
        the spikes themselves would raise. Norms are judged by their logarithm: they vary by
        factors.
        """
        if 2 * len(self.losses) < (self.losses.maxlen or 0) or len(self.losses) < 2:
            return None
        usual, away = robust_deviations(loss, self.losses, _LEAST_LOSS)
        if away > deviations:
            return Spike("loss", loss, usual, away)
        logs = [_log(norm) for norm in self.gradient_norms]
        usual, away = robust_deviations(_log(gradient_norm), logs, _LEAST_LOG_NORM, relative=False)
        if away > deviations:
            return Spike("gradient_norm", gradient_norm, math.exp(usual), away)
        return None


def robust_deviations(
    value: float, others: Sequence[float], least: float, relative: bool = True
) -> tuple[float, float]:
    """The median of `others`, and how many deviations `value` lies above it.

    A deviation is the median distance from the median over 0.6745, which for a normal distribution
    is its standard deviation (Hampel, 1974), and at least `least` (times the median if `relative`).
    """
    usual = _median(others)
    spread = _median([abs(other - usual) for other in others]) / _MEDIAN_DISTANCE
    floor = least * abs(usual) if relative else least
    return usual, (value - usual) / max(spread, floor, 1e-12)


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))
