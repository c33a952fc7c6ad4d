"""What the trainer asks of a source of batches and of a guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from torch import nn

from fourstage.data.batch import Batch
from fourstage.objectives.objective import Objective


class Source(Protocol):
    """Gives the batch of a step.

    A source may also have `metrics() -> dict[str, float]`: numbers of its own for the next row of
    metrics.jsonl (the reward of the last rollouts, the KL coefficient); `most_cells`: a number of
    cells that no batch exceeds; and, set to True, `depends_on_number_alone`: its batches may then
    be drawn ahead by a thread. One that reads the module in training (rollouts) has `whole`, which
    the trainer sets: it gives a context in which the module that the trainer was given holds its
    present weights.
    """

    def batch(self, step: int) -> Batch:
        """The whole batch of a step, the same on every rank.

        For files it is a function of (seed, step) alone; what else it depends on is in `state`.
        After a rollback the number runs ahead of the step: batches are left out, never given twice.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Tensors, arrays and JSON values in nested dicts and lists; {} where nothing is held."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave; tuples come as lists."""
        ...


# Looks at the first batch of a stage before anything is updated; raises GuardFailed.
Guard: TypeAlias = Callable[[nn.Module, Objective, Batch], None]
