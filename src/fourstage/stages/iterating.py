"""Batches of what is drawn anew each iteration, and learned from in several updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fourstage.data.batch import Batch
from fourstage.randomness import permutation
from fourstage.stages.drawing import Drawer


class Iterations(ABC):
    """Gives step s a part of what iteration `s // (epochs * minibatches)` drew.

    What is held between two steps is part of the checkpoint.

    Attributes:
        together: documents in a row that no minibatch parts.
        whole: gives a context in which the policy holds its present weights.
        rollouts: what the newest iteration learns from. numbers: means of what it drew.
    """

    together = 1

    def __init__(self, drawer: Drawer):
        self.drawer, self.section = drawer, drawer.section
        self.whole: Callable[[], AbstractContextManager] = nullcontext
        self.iteration = -1
        self.rollouts: Batch | None = None
        self.numbers: dict[str, float] = {}

    @abstractmethod
    def roll(self, iteration: int) -> Batch:
        """Draws an iteration, and tells of it in `numbers`."""

    @property
    def updates(self) -> int:
        """Steps of one iteration."""
        return self.section.epochs * self.section.minibatches

    def minibatch(self, step: int) -> Batch:
        """The part of a step; the first step of an iteration draws it first."""
        iteration, update = divmod(step, self.updates)
        if iteration != self.iteration or self.rollouts is None:
            with self.whole():
                self.rollouts = self.roll(iteration)
            self.iteration = iteration
        epoch, number = divmod(update, self.section.minibatches)
        count = len(self.rollouts.lengths) // self.together
        order = permutation(count, self.drawer.seed, "minibatches", iteration, epoch)
        part = np.array_split(order, self.section.minibatches)[number]
        documents = self.together * part[:, None] + np.arange(self.together)
        return self.rollouts.select(documents.flatten().tolist())

    def close(self) -> None:
        """Lets go of what draws."""
        self.drawer.close()

    def metrics(self) -> dict[str, float]:
        """Means of the newest responses: reward, gold, KL in nats a response, and others."""
        return dict(self.numbers)

    def state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "rows": self.drawer.rows,
            "place": self.drawer.place,
            "numbers": self.numbers,
            "rollouts": self.rollouts.state() if self.rollouts is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.iteration = int(state["iteration"])
        self.drawer.rows = int(state.get("rows", self.drawer.rows))
        self.drawer.place = int(state.get("place", 0))
        self.numbers = dict(state["numbers"])
        held = state["rollouts"]
        self.rollouts = Batch.from_state(held) if held is not None else None
