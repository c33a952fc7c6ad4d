"""The best rate of a sweep: the lowest point of a parabola over the logarithm of the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Loss rises steeply where training becomes unstable, so a parabola holds near the lowest point
# only: within two octaves of the best rate, and where the loss is at most a tenth above its own.
_OCTAVES, HIGHEST = 2.0, 1.1
# Two-sided 95% quantiles of Student's t by degrees of freedom, and beyond them.
_STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_BEYOND = 1.96


@dataclass(frozen=True)
class Fit:
    """`loss = loss_at_best + curvature (log2 rate - log2 best)^2`.

    Attributes:
        rate: where the loss is lowest, within the rates that were fitted.
        loss: there, by the parabola (by the trial where there is none).
        low, high: 95% interval of the rate; the neighbouring rates where the trials are too few to
            tell how much they scatter.
        curvature: nats an octave squared; 0 where no parabola fits.
        at_end: the lowest point lies at an end of what was tried: it may lie beyond.
    """

    rate: float
    loss: float
    low: float
    high: float
    curvature: float
    at_end: bool

    def loss_at(self, rate: float) -> float:
        return self.loss + self.curvature * math.log2(rate / self.rate) ** 2


def fit(points: Sequence[tuple[float, float | None]]) -> Fit | None:
    """The parabola through (rate, loss) by least squares; None where every trial diverged.

    Args:
        points: of one batch. A loss of None, or one that is not finite, is left out.
    """
    found = sorted((r, loss) for r, loss in points if loss is not None and math.isfinite(loss))
    if not found:
        return None
    best = min(range(len(found)), key=lambda index: found[index][1])
    low, high = found[max(0, best - 1)][0], found[min(len(found) - 1, best + 1)][0]
    at_end = best in (0, len(found) - 1)
    alone = Fit(*found[best], low, high, 0.0, at_end)
    near = _near(found, best)
    if len(near) < 3:
        return alone
    x = np.log2([rate for rate, _ in near])
    middle = x.mean()
    design = np.stack([(x - middle) ** 2, x - middle, np.ones_like(x)], axis=1)
    losses = np.array([loss for _, loss in near])
    (bend, slope, height), *_ = np.linalg.lstsq(design, losses, rcond=None)
    if bend <= 1e-12:
        return alone
    vertex = float(-slope / (2 * bend))
    inside = float(np.clip(vertex, x[0] - middle, x[-1] - middle))
    lowest = height + slope * inside + bend * inside**2
    error = _error(design, losses, (bend, slope, height), vertex)
    if error is not None:
        low, high = (2.0 ** float(middle + inside + side * error) for side in (-1, 1))
        low, high = max(low, found[0][0]), min(high, found[-1][0])
    # The curve through the lowest point inside has the parabola's bend and no slope.
    rate = 2.0 ** float(middle + inside)
    return Fit(rate, float(lowest), low, high, float(bend), at_end or inside != vertex)


def _near(found: Sequence[tuple[float, float]], best: int) -> list[tuple[float, float]]:
    """The points that a parabola may hold for: the best, its neighbours, and others close by."""
    rate, loss = found[best]
    return [
        point
        for index, point in enumerate(found)
        if abs(index - best) <= 1
        or (abs(math.log2(point[0] / rate)) <= _OCTAVES + 0.01 and point[1] <= loss * HIGHEST)
    ]


def _error(
    design: np.ndarray, losses: np.ndarray, coefficients: Sequence[float], vertex: float
) -> float | None:
    """Half of the vertex's 95% interval, in octaves, by the delta method; None without scatter."""
    freedom = len(losses) - 3
    if freedom < 1:
        return None
    bend = coefficients[0]
    scatter = float(((losses - design @ np.array(coefficients)) ** 2).sum()) / freedom
    covariance = scatter * np.linalg.inv(design.T @ design)
    gradient = np.array([-vertex / bend, -1 / (2 * bend), 0.0])
    student = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _BEYOND
    return student * math.sqrt(max(0.0, float(gradient @ covariance @ gradient)))
