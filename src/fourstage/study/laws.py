"""How gold rises and falls with the distance from the initial policy, fitted to what was measured.

Gao, Schulman and Hilton, *Scaling Laws for Reward Model Overoptimization*, 2022; `d = sqrt(KL)`:

    best of n     R(d) = d (alpha - beta d)
    RL            R(d) = d (alpha - beta log d)

R is the gain over the initial policy, so both go through the origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Law = Literal["best_of_n", "rl"]
# Two numbers are fitted: two points would always be met.
FEWEST = 3


class TooFewPoints(ValueError):
    """There is nothing to fit; the message says what is missing."""


@dataclass(frozen=True)
class Fit:
    """A law with its numbers.

    Attributes:
        alpha: the gain in gold a unit of d at first (best of n), or at d = 1 (RL).
        beta: how fast that falls.
        residual: root mean square of what the law misses, in units of gold.
        points: how many it was fitted to. reached: the largest KL among them, nats.
        intervals: 95% bootstrap intervals of `alpha` and `beta`, where they were asked for.
    """

    law: Law
    alpha: float
    beta: float
    residual: float
    points: int
    reached: float
    intervals: dict[str, tuple[float, float]]

    def gain(self, kl: float) -> float:
        """R at a KL in nats."""
        return float(_terms(self.law, np.array([kl]))[0] @ (self.alpha, self.beta))

    @property
    def peak(self) -> float | None:
        """The KL in nats at which the law's gold is highest; None where it never falls."""
        if self.beta <= 0:
            return None
        if self.law == "best_of_n":
            return (self.alpha / (2 * self.beta)) ** 2 if self.alpha > 0 else 0.0
        exponent = 2 * (self.alpha / self.beta - 1)
        return math.exp(exponent) if exponent < 700 else None

    def to_json(self) -> dict[str, Any]:
        peak = self.peak
        return {
            "law": self.law,
            "alpha": self.alpha,
            "beta": self.beta,
            "residual": self.residual,
            "points": self.points,
            "reached": self.reached,
            "peak_kl": peak,
            "peak_gain": None if peak is None else self.gain(peak),
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
        }

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Fit:
        names = ("law", "alpha", "beta", "residual", "points", "reached")
        intervals = {name: (low, high) for name, (low, high) in told["intervals"].items()}
        return cls(**{name: told[name] for name in names}, intervals=intervals)


def _terms(law: Law, kl: np.ndarray) -> np.ndarray:
    """[points] -> [points, 2] what alpha and beta are multiplied by."""
    d = np.sqrt(kl)
    # d log d goes to 0 with d.
    falling = d * d if law == "best_of_n" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -falling], axis=1)


def fit(law: Law, points: Sequence[tuple[float, float]]) -> Fit:
    """The law through points (KL in nats, gain), by least squares with a fixed origin.

    Points at a KL of 0 or below, which an estimate can be, say nothing of the law and are left out.

    Raises:
        TooFewPoints: fewer than three different distances are left.
    """
    kept = [(kl, gain) for kl, gain in points if kl > 0 and math.isfinite(gain)]
    distances = len({kl for kl, _ in kept})
    if distances < FEWEST:
        raise TooFewPoints(
            f"{distances} different distances above 0, and a law of two numbers needs {FEWEST}"
        )
    kl, gains = np.array(kept, np.float64).T
    terms = _terms(law, kl)
    numbers = np.linalg.lstsq(terms, gains, rcond=None)[0]
    residual = float(np.sqrt(np.mean((terms @ numbers - gains) ** 2)))
    alpha, beta = map(float, numbers)
    return Fit(law, alpha, beta, residual, len(kept), float(kl.max()), {})


def with_intervals(found: Fit, kl: Sequence[float], resampled: np.ndarray) -> Fit:
    """The fit with 95% intervals, from fits to [resamples, points] gains at the same distances."""
    terms = _terms(found.law, np.asarray(kl, np.float64))
    numbers = np.linalg.lstsq(terms, resampled.T, rcond=None)[0]
    ends = np.percentile(numbers, (2.5, 97.5), axis=1)
    intervals = {
        name: (float(ends[0, place]), float(ends[1, place]))
        for place, name in enumerate(("alpha", "beta"))
    }
    return replace(found, intervals=intervals)
