"""A measured number with its 95% interval, and a stage's numbers by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fourstage.randomness import numpy_generator

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean over held-out items, and the 95% percentile interval of its bootstrap."""

    value: float
    low: float
    high: float


def mean_of(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """The mean of `values` [n]; items are drawn again with replacement (Efron, 1979).

    Raises:
        ValueError: there is nothing to take the mean of.
    """
    return ratio_of(values, np.ones(len(values)), seed)


def ratio_of(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    seed: int = 0,
) -> Estimate:
    """`sum(numerators) / sum(denominators)`, [n] each, items resampled as wholes.

    Raises:
        ValueError: there are no items, or their denominators sum to nothing.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not len(top) or bottom.sum() == 0:
        raise ValueError("an estimate needs at least one item")
    value = top.sum() / bottom.sum()
    tops, bottoms = np.empty(RESAMPLES), np.empty(RESAMPLES)
    generator = numpy_generator(seed, "bootstrap", len(top))
    for start in range(0, RESAMPLES, 100):
        rows = generator.integers(0, len(top), (100, len(top)))
        tops[start : start + 100] = top[rows].sum(axis=1)
        bottoms[start : start + 100] = bottom[rows].sum(axis=1)
    # A resample whose denominators are all zero says nothing.
    drawn = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(float(value), float(low), float(high))


@dataclass
class Numbers:
    """What `results.json` holds of a measurement.

    Attributes:
        metrics: name -> value; a name with `/kind` is that of one kind of item.
        intervals: name -> [low, high], for the names that were estimated.
        extra: further JSON values of the results, such as a calibration curve.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float | Estimate) -> Numbers:
        """Adds a number; one that is not finite is left out, since JSON has no word for it."""
        if isinstance(value, Estimate):
            self.add(name, value.value)
            if name in self.metrics:
                self.intervals[name] = [value.low, value.high]
        elif math.isfinite(value):
            self.metrics[name] = float(value)
        return self

    def add_means(
        self, name: str, values: Sequence[float] | np.ndarray, kinds: Sequence[str] = ()
    ) -> Numbers:
        """Adds the mean of `values` [n], and that of each kind as `name/kind`."""
        values = np.asarray(values, np.float64)
        return self.add_ratios(name, values, np.ones(len(values)), kinds)

    def add_ratios(
        self,
        name: str,
        numerators: Sequence[float] | np.ndarray,
        denominators: Sequence[float] | np.ndarray,
        kinds: Sequence[str] = (),
    ) -> Numbers:
        """Adds `sum / sum` over all items and over those of each kind; nothing for no items."""
        top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
        if len(top) and bottom.sum() > 0:
            self.add(name, ratio_of(top, bottom))
        for kind in sorted(set(kinds)):
            chosen = np.array([each == kind for each in kinds])
            if bottom[chosen].sum() > 0:
                self.add(f"{name}/{kind}", ratio_of(top[chosen], bottom[chosen]))
        return self

    def update(self, other: Numbers) -> Numbers:
        self.metrics |= other.metrics
        self.intervals |= other.intervals
        self.extra |= other.extra
        return self

    def to_json(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "intervals": self.intervals, **self.extra}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Numbers:
        extra = {key: value[key] for key in value if key not in ("metrics", "intervals")}
        return cls(dict(value["metrics"]), dict(value["intervals"]), extra)
