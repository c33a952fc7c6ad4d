"""Online preference learning: the policy's own responses, the best of a group against the worst.

An iteration draws `rollout_batch` responses, `group` to each prompt, which the reward model or
`rl.rewards` order; each group gives one comparison (Guo et al., *Direct Language Model Alignment
from Online AI Feedback*, 2024; best against worst: Dong et al., *RLHF Workflow*, 2024). The
reference stays what the policy started as.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.data.compared import BAD, GOOD
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.stages.context import StageContext
from fourstage.stages.drawing import Drawer, drawer
from fourstage.stages.episodes import Players, of_each
from fourstage.stages.iterating import Iterations
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


class OnlinePairs(Iterations):
    """Answers step s with a part of the comparisons of iteration `s // (epochs * minibatches)`.

    A group whose responses are worth the same is a comparison of weight 0, which teaches nothing.
    """

    together = 2

    def __init__(self, players: Players, drawer: Drawer, judge: Judge, finishing: Finishing):
        self.finishing = finishing
        super().__init__(drawer)
        self.players, self.judge = players, judge

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
        chosen = self.minibatch(step)
        if self.section.algorithm == "kto":
            # The two sides stand each for itself.
            del chosen.documents["group"]
            chosen.documents["labels"] = torch.tensor([GOOD, BAD] * (len(chosen.lengths) // 2))
        return self.finishing(chosen)

    def roll(self, iteration: int) -> Batch:
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
