"""What is tried: learning rates and batches in steps of two around a centre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One trial: a peak learning rate, and a batch in the stage's own unit (tokens or pairs)."""

    rate: float
    batch: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"batch-{self.batch}-rate-{self.rate:.3g}"


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Attributes:
        loss: on held-out data at its end, nats; None where it diverged.
        tokens: cells trained on. tokens_per_second: of its steps alone.
        seconds: of all of it.
    """

    setting: Setting
    loss: float | None
    steps: int
    tokens: int
    tokens_per_second: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self).items() if name != "setting"}
        return {"rate": self.setting.rate, "batch": self.setting.batch, **told}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Outcome:
        told = dict(row)
        return cls(Setting(told.pop("rate"), told.pop("batch")), **told)


def around(centre: float, count: int) -> list[float]:
    """`count` values in steps of two around `centre`, in rising order; the centre is one of them.

    An odd count reaches as far down as up: five values span a factor of four each way.
    """
    lowest = -((count - 1) // 2)
    return [centre * 2.0**power for power in range(lowest, lowest + count)]


def settings(rate: float, batch: int, rates: int, batches: int) -> list[Setting]:
    """The whole grid, the centre first and the rest by distance from it.

    In this order a test that is cut short has already seen what matters most.
    """
    sizes = sorted({max(1, round(size)) for size in around(batch, batches)}, key=_far_from(batch))
    values = sorted(around(rate, rates), key=_far_from(rate))
    return [Setting(value, size) for size in sizes for value in values]


def _far_from(centre: float):
    return lambda value: (max(value / centre, centre / value), value)


def beyond(outcomes: Sequence[Outcome]) -> float | None:
    """The next rate outwards where the best of one batch lies at an end of its rates, else None.

    Beyond a rate that diverged there is nothing to be found.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.setting.rate)
    finite = [outcome for outcome in ordered if outcome.loss is not None]
    if not finite:
        return ordered[0].setting.rate / 2 if ordered else None
    best = min(finite, key=lambda outcome: outcome.loss or 0.0)
    if best is ordered[0]:
        return best.setting.rate / 2
    return best.setting.rate * 2 if best is ordered[-1] else None
