"""Online preference learning: the policy's own responses, the best of a group against the worst.

An iteration draws `rollout_batch` responses, `group` to each prompt, which the reward model or
`rl.rewards` order; each group gives one comparison (Guo et al., *Direct Language Model Alignment
from Online AI Feedback*, 2024; best against worst: Dong et al., *RLHF Workflow*, 2024). The
reference stays what the policy started as.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.data.compared import BAD, GOOD
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.randomness import permutation
from fourstage.stages.context import StageContext
from fourstage.stages.drawing import Drawer, drawer
from fourstage.stages.episodes import Players, of_each
from fourstage.stages.judging import Judge
from fourstage.stages.preference import Finishing
from fourstage.tasks import Task


def online_source(
    context: StageContext,
    players: Players,
    tasks: Sequence[Task],
    judge: Judge,
    finishing: Finishing,
) -> OnlinePairs:
    return OnlinePairs(players, drawer(context, players.trained.policy, tasks), judge, finishing)


class OnlinePairs:
    """Answers step s with a part of the comparisons of iteration `s // (epochs * minibatches)`.

    A group whose responses are worth the same is a comparison of weight 0, which teaches nothing.
    What is held between two steps is part of the checkpoint.
    """

    def __init__(self, players: Players, drawer: Drawer, judge: Judge, finishing: Finishing):
        self.players, self.drawer, self.judge = players, drawer, judge
        self.finishing, self.section = finishing, drawer.section
        self._whole: Callable[[], AbstractContextManager] = nullcontext
        self.iteration = -1
        self.pairs: Batch | None = None
        self.numbers: dict[str, float] = {}

    @property
    def whole(self) -> Callable[[], AbstractContextManager]:
        """Gives a context in which the policy holds its present weights."""
        return self._whole

    @whole.setter
    def whole(self, whole: Callable[[], AbstractContextManager]) -> None:
        self._whole = self.finishing.whole = whole

    @property
    def most_cells(self) -> int:
        """Cells that no trained batch has more of."""
        section = self.section
        pairs = -(-section.rollout_batch // section.group // section.minibatches)
        return 2 * pairs * self.drawer.longest

    def batch(self, step: int) -> Batch:
        """The minibatch of a step; the first step of an iteration draws it first."""
        section, seed = self.section, self.drawer.seed
        iteration, update = divmod(step, section.epochs * section.minibatches)
        if iteration != self.iteration or self.pairs is None:
            with self._whole():
                self.pairs = self.draw(iteration)
            self.iteration = iteration
        epoch, number = divmod(update, section.minibatches)
        count = len(self.pairs.lengths) // 2
        order = permutation(count, seed, "minibatches", iteration, epoch)
        part = np.array_split(order, section.minibatches)[number]
        chosen = self.pairs.select([2 * int(pair) + side for pair in part for side in (0, 1)])
        if section.algorithm == "kto":
            # The two sides stand each for itself.
            del chosen.documents["group"]
            chosen.documents["labels"] = torch.tensor([GOOD, BAD] * len(part))
        return self.finishing(chosen)

    def draw(self, iteration: int) -> Batch:
        """The comparisons of an iteration, chosen and rejected in turn."""
        drawn = self.drawer.draw(iteration, self.judge)
        batch, rewards = drawn.batch(), drawn.scores
        sides = best_and_worst(rewards, self.section.group)
        gaps = rewards[sides[:, 0]] - rewards[sides[:, 1]]
        self.numbers = {
            "iteration": iteration,
            **self.drawer.numbers(drawn, self.judge),
            "kl": kl_of_drawn(self, batch),
            "reward_gap": float(gaps.mean()),
        }
        pairs = batch.select(sides.flatten().tolist())
        pairs.documents["group"] = torch.arange(len(sides)).repeat_interleave(2)
        pairs.documents["weights"] = (gaps > 0).float().repeat_interleave(2)
        return pairs

    def metrics(self) -> dict[str, float]:
        """Means of the newest responses: reward, gold, KL in nats a response."""
        return dict(self.numbers)

    def state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "rows": self.drawer.rows,
            "place": self.drawer.place,
            "numbers": self.numbers,
            "rollouts": self.pairs.state() if self.pairs is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.iteration = int(state["iteration"])
        self.drawer.rows = int(state["rows"])
        self.drawer.place = int(state["place"])
        self.numbers = dict(state["numbers"])
        held = state["rollouts"]
        self.pairs = Batch.from_state(held) if held is not None else None


def best_and_worst(rewards: Tensor, group: int) -> Tensor:
    """[responses] -> [groups, 2] the response with the highest reward of each group, and that with
    the lowest; the first of equal ones."""
    of_groups = rewards.view(-1, group)
    first = torch.arange(len(of_groups)) * group
    return torch.stack([first + of_groups.argmax(1), first + of_groups.argmin(1)], 1)


def kl_of_drawn(source: Any, batch: Batch) -> float:
    """Nats a response from the reference, at the temperature that it was drawn at (k1)."""
    players, temperature = source.players, source.section.temperature

    def gap(part: Batch) -> Tensor:
        now = trained_logprobs(players.trained.policy, part, temperature)
        return now - trained_logprobs(players.reference, part, temperature)

    return float(of_each(source.drawer.group, batch, gap).sum()) / len(batch.lengths)
