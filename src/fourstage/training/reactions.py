"""What is done about a spike, and what is remembered of it: all of it is part of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fourstage.training.settings import TrainSettings
from fourstage.training.spikes import History, Spike


@dataclass(frozen=True)
class Rollback:
    """A return to an earlier step, from which training went on with later batches.

    Attributes:
        to_step: steps that were kept. from_step: the step that spiked.
        first, last: the batches that were left out, as the source counts them.
        cause: what an event's row says of the spike.
    """

    to_step: int
    from_step: int
    first: int
    last: int
    cause: dict[str, Any] = field(default_factory=dict)


class Stability:
    """Judges each step by those before it, and keeps what the steps to come depend on.

    Attributes:
        rate: factor on every learning rate from here on.
        rollbacks: those so far, in the order in which they happened.
        said: the last step that spiked; spikes in neighbouring steps are told once.
    """

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        self.history = History(settings.spike_window)
        self.rate = 1.0
        self.rollbacks: list[Rollback] = []
        self.said = -1

    def spike(self, loss: float, gradient_norm: float) -> Spike | None:
        """Whether a step spikes against those before it; nothing is remembered."""
        return self.history.spike(loss, gradient_norm, self.settings.spike_deviations)

    def batch_of(self, step: int) -> int:
        """The batch that a step trains on: its own number, past those that were left out."""
        batch = step
        for first, last in self._gaps():
            if batch >= first:
                batch += last - first + 1
        return batch

    def _gaps(self) -> list[tuple[int, int]]:
        """Ranges of batches left out, rising and apart from one another."""
        gaps: list[tuple[int, int]] = []
        for first, last in sorted((each.first, each.last) for each in self.rollbacks):
            if gaps and first <= gaps[-1][1] + 1:
                gaps[-1] = (gaps[-1][0], max(gaps[-1][1], last))
            else:
                gaps.append((first, last))
        return gaps

    def rollback(self, spiked: int, cause: dict[str, Any]) -> Rollback | None:
        """The rollback that a spike in the making of step `spiked` brings about; None where there
        have been as many as there may be. It counts once it is one of `rollbacks`."""
        if len(self.rollbacks) >= self.settings.most_rollbacks:
            return None
        kept = max(0, spiked - self.settings.rollback_steps)
        return Rollback(kept, spiked, self.batch_of(kept), self.batch_of(spiked - 1), cause)

    def needed(self, step: int, saved: Sequence[int]) -> set[int]:
        """Which of the `saved` checkpoints rollbacks to come may need: of one at the step after
        `step`, and of all that may still be taken, each at the first step after the one before.

        Args:
            saved: steps of the checkpoints that there are, in rising order.
        """
        found: set[int] = set()
        if self.settings.on_spike == "rollback":
            for times in (1, self.settings.most_rollbacks - len(self.rollbacks)):
                kept = max(0, step + 1 - times * self.settings.rollback_steps)
                found.update([each for each in saved if each <= kept][-1:])
        return found

    def left_out_before(self, step: int) -> list[Rollback]:
        """The rollbacks whose batches lie between those of the step before and of `step`."""
        since = self.batch_of(step - 1) + 1 if step else 0
        until = self.batch_of(step)
        return [each for each in self.rollbacks if since <= each.first and each.last < until]

    def lower_rate(self) -> float:
        """Lowers the rate; the next judgement waits until half a window is known at it."""
        self.rate *= self.settings.lowered_rate
        self.history.clear()
        return self.rate

    def is_told(self, step: int) -> bool:
        """Whether a spike at `step` belongs to one already told; remembers it as the last."""
        told = self.said >= 0 and step - self.said <= self.settings.spike_window // 8
        self.said = step
        return told

    def state(self) -> dict[str, Any]:
        return {
            "losses": list(self.history.losses),
            "gradient_norms": list(self.history.gradient_norms),
            "rate": self.rate,
            "rollbacks": [asdict(each) for each in self.rollbacks],
            "said": self.said,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave; an empty one, of a checkpoint without, changes nothing."""
        if not state:
            return
        window = self.settings.spike_window
        self.history = History(window, state["losses"], state["gradient_norms"])
        self.rate = state["rate"]
        self.rollbacks = [Rollback(**each) for each in state["rollbacks"]]
        self.said = state["said"]
