"""Rollouts one iteration ahead: drawn in a thread while the iteration before is trained on.

Iteration k + 1 is drawn with the weights of the start of iteration k (one step off-policy:
Noukhovitch et al., *Asynchronous RLHF*, 2024). Which weights draw which iteration is fixed, so the
same recipe gives the same bits, whatever the two take.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from fourstage.data.batch import Batch
from fourstage.errors import InputError, MachineError
from fourstage.model.transformer import Transformer
from fourstage.training.background import Background

Drawn = tuple[Batch, dict[str, float]]


def frozen_copy(policy: Transformer, device: str | None, processes: int = 1) -> Transformer:
    """A copy of the policy to draw from, on a device of its own where one is named.

    Raises:
        InputError: several processes would share that device.
        MachineError: it is not there.
    """
    made = copy.deepcopy(policy).eval().requires_grad_(False)
    if device is None:
        return made
    if processes > 1:
        raise InputError(
            f"rl.rollout_device={device} is of a single process, and there are {processes}: leave "
            "it out"
        )
    try:
        return made.to(device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise MachineError(
            f"rl.rollout_device={device} cannot be used ({first}): write one that is there, such "
            "as cuda:1, or leave it out"
        ) from error


class Ahead:
    """Holds what is being drawn.

    Args:
        policy: the model in training. rolling: the copy of it that `draw` draws from.
        draw: iteration -> what it drew; called in a thread.
    """

    def __init__(self, policy: Transformer, rolling: Transformer, draw: Callable[[int], Drawn]):
        self.policy, self.rolling, self.draw = policy, rolling, draw
        self._iteration = -1
        self._drawn: Drawn | None = None
        self._working = Background()

    def take(self, iteration: int) -> Drawn:
        """What was drawn for an iteration; the first one, and one that a rollback leapt to, is
        drawn now, with the present weights.

        Raises:
            Exception: what drawing ended with.
        """
        self.wait()
        drawn, is_wanted = self._drawn, self._iteration == iteration
        self._drawn = None
        if drawn is not None and is_wanted:
            return drawn
        self._take_weights()
        return self.draw(iteration)

    def start(self, iteration: int) -> None:
        """Begins to draw an iteration with the present weights."""
        self._take_weights()
        threads = torch.get_num_threads()

        def job() -> None:
            # Sums in another number of parts round differently, and each thread has its own number.
            torch.set_num_threads(threads)
            self._drawn = self.draw(iteration)

        self._iteration = iteration
        self._working.start(job, f"rollouts of iteration {iteration}")

    def wait(self) -> None:
        """Waits for what is being drawn.

        Raises:
            Exception: what drawing ended with.
        """
        self._working.wait()

    def _take_weights(self) -> None:
        self.rolling.load_state_dict(self.policy.state_dict())

    def state(self) -> dict[str, Any]:
        """What is pending, waited for."""
        self.wait()
        if self._drawn is None:
            return {}
        batch, numbers = self._drawn
        return {"iteration": self._iteration, "batch": batch.state(), "numbers": numbers}

    def restore(self, state: dict[str, Any]) -> None:
        self.wait()
        self._iteration, self._drawn = int(state.get("iteration", -1)), None
        if state:
            self._drawn = Batch.from_state(state["batch"]), dict(state["numbers"])
