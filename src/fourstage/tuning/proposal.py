"""From the trials of all batches to one rate and one batch, and what they gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fourstage.planning.rules import two_digits
from fourstage.tuning.fit import Fit, fit
from fourstage.tuning.grid import Outcome, Setting

# Batches whose lowest loss is so near the lowest of all are as good: the fastest of them is taken,
# and the centre's where none is faster by more than measuring scatters.
_AS_GOOD, _FASTER = 0.005, 1.05


@dataclass(frozen=True)
class Sweep:
    """The trials of one batch, and the parabola through them."""

    batch: int
    outcomes: list[Outcome]
    fit: Fit

    @property
    def tokens_per_second(self) -> float:
        return median(outcome.tokens_per_second for outcome in self.outcomes)


@dataclass(frozen=True)
class Proposal:
    """What the trials propose, beside what they were tried around.

    Attributes:
        low, high: 95% interval of the rate.
        loss: at the proposal, by its parabola. centre_loss: of the centre's own trial, None where
            it diverged or was not reached.
        at_end: the best rate may lie beyond what was tried.
    """

    rate: float
    batch: int
    low: float
    high: float
    loss: float
    tokens_per_second: float
    centre: Setting
    centre_loss: float | None
    centre_tokens_per_second: float
    at_end: bool

    @property
    def loses(self) -> float | None:
        """Share of the proposal's loss by which the centre's is above it."""
        if self.centre_loss is None:
            return None
        return self.centre_loss / self.loss - 1

    def to_json(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self).items() if name != "centre"}
        centre = {"centre_rate": self.centre.rate, "centre_batch": self.centre.batch}
        return told | centre | {"centre_loses": self.loses}


def sweeps(outcomes: Sequence[Outcome]) -> list[Sweep]:
    """The trials by batch, in rising order; a batch whose every trial diverged is left out."""
    by_batch: dict[int, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda each: (each.setting.batch, each.setting.rate)):
        by_batch.setdefault(outcome.setting.batch, []).append(outcome)
    found = []
    for batch, members in by_batch.items():
        fitted = fit([(outcome.setting.rate, outcome.loss) for outcome in members])
        if fitted is not None:
            found.append(Sweep(batch, members, fitted))
    return found


def propose(outcomes: Sequence[Outcome], centre: Setting) -> Proposal | None:
    """The rate and the batch of the lowest loss, or of nearly that where it is faster.

    None where every trial diverged.
    """
    found = sweeps(outcomes)
    if not found:
        return None
    lowest = min(sweep.fit.loss for sweep in found)
    good = [sweep for sweep in found if sweep.fit.loss <= lowest * (1 + _AS_GOOD)]
    fastest = max(good, key=lambda sweep: sweep.tokens_per_second)
    usual = [sweep for sweep in good if sweep.batch == centre.batch]
    if usual and fastest.tokens_per_second < _FASTER * usual[0].tokens_per_second:
        fastest = usual[0]
    own = next((outcome for outcome in outcomes if outcome.setting == centre), None)
    return Proposal(
        rate=two_digits(fastest.fit.rate),
        batch=fastest.batch,
        low=fastest.fit.low,
        high=fastest.fit.high,
        loss=fastest.fit.loss,
        tokens_per_second=fastest.tokens_per_second,
        centre=centre,
        centre_loss=own.loss if own else None,
        centre_tokens_per_second=own.tokens_per_second if own else 0.0,
        at_end=fastest.fit.at_end,
    )
