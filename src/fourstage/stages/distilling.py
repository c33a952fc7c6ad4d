"""Imitating the best of one's own responses: best-of-n distillation and expert iteration.

`bon` draws from the model that the stage started from; so the policy comes to write in one go what
was the best of n (Nakano et al., *WebGPT*, 2021; Gao et al., 2022). `raft` draws anew from the
policy in each round (Dong et al., *RAFT*, 2023; Gulcehre et al., *ReST*, 2023). The loss is that
of the next token, on the responses kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.objectives.next_token import NextToken
from fourstage.objectives.objective import Objective, tokens_of_documents
from fourstage.stages.context import StageContext
from fourstage.stages.datafiles import sample_tasks
from fourstage.stages.drawing import Drawer, drawer
from fourstage.stages.episodes import Players
from fourstage.stages.iterating import Iterations
from fourstage.stages.judging import Judge
from fourstage.stages.online import kl_of_drawn
from fourstage.stages.policy_guards import trains_responses
from fourstage.stages.samples import answers
from fourstage.tasks import Task
from fourstage.training.contracts import Guard
from fourstage.training.guards import documents_do_not_leak
from fourstage.training.trainer import TrainResult


def train(
    context: StageContext, players: Players, tasks: Sequence[Task], judge: Judge
) -> TrainResult:
    """Trains the policy of `players` on the best of its responses to `tasks`, by `judge`."""
    policy = players.trained.policy
    model = policy
    if context.section.algorithm == "bon":
        assert players.reference is not None, "best-of-n draws from the model it started from"
        model = players.reference
    with closing(BestResponses(players, drawer(context, model, tasks), judge)) as source:
        return context.train(
            policy,
            NextToken(0.0, *context.recipe.model.routing_losses),
            source,
            guards=[of_trained(trains_responses), documents_do_not_leak()],
            sample=lambda step: answers(context, policy, sample_tasks(context), judge.alone()),
        )


def of_trained(guard: Guard) -> Guard:
    """The guard on documents that are trained: what fills up a step is not, and that is no fault of
    the mask."""

    def of_them(module: nn.Module, objective: Objective, batch: Batch) -> None:
        trained = (tokens_of_documents(batch) > 0).nonzero().squeeze(1).tolist()
        if trained:
            guard(module, objective, batch.select(trained))

    return of_them


class BestResponses(Iterations):
    """Answers step s with a part of what iteration `s // (epochs * minibatches)` kept.

    Where fewer responses are kept than there are steps, the best of the others fill up, untrained:
    a step without anything to imitate has no gradient. The optimiser takes it all the same, so that
    the momentum of the steps before, and a weight decay, go on to move the weights.
    """

    def __init__(self, players: Players, drawer: Drawer, judge: Judge):
        super().__init__(drawer)
        self.players, self.judge = players, judge

    @property
    def most_cells(self) -> int:
        """Cells that no batch has more of."""
        section = self.section
        kept = section.rollout_batch // section.group * section.distil.keep
        return -(-kept // section.minibatches) * self.drawer.longest

    def batch(self, step: int) -> Batch:
        return self.minibatch(step)

    def roll(self, iteration: int) -> Batch:
        """What an iteration keeps of the responses drawn."""
        told, drawn = self.section.distil, self.drawer.draw(iteration, self.judge)
        batch, rewards = drawn.batch(), drawn.scores
        kept = the_best(rewards, self.section.group, told.keep, told.threshold)
        self.numbers = {
            "iteration": iteration,
            **self.drawer.numbers(drawn, self.judge),
            "kept": len(kept) / len(rewards),
        }
        if self.drawer.policy is not self.players.reference:
            self.numbers["kl"] = kl_of_drawn(self, batch)
        if kept:
            self.numbers["reward_kept"] = float(rewards[kept].mean())
        return filled_up(batch, kept, rewards, self.section.minibatches)


def the_best(rewards: Tensor, group: int, keep: int, threshold: float | None) -> list[int]:
    """Indices of the `keep` responses of highest reward in each group, of at least `threshold`.

    Of equal ones the first come first. Without a threshold a group that is worth the same
    throughout has no best, and none of it is kept.
    """
    found = []
    for first, values in enumerate(rewards.view(-1, group)):
        order = torch.sort(values, descending=True, stable=True).indices[:keep].tolist()
        if threshold is None and bool((values == values[0]).all()):
            continue
        bar = -math.inf if threshold is None else threshold
        found += [first * group + place for place in order if values[place] >= bar]
    return found


def filled_up(batch: Batch, kept: Sequence[int], rewards: Tensor, least: int) -> Batch:
    """The kept responses, and where they are fewer than `least` the best of the others, without a
    trained token."""
    others = torch.sort(rewards, descending=True, stable=True).indices.tolist()
    taken = set(kept)
    spare = [index for index in others if index not in taken][: max(0, least - len(kept))]
    found = batch.select([*kept, *spare])
    untrained = found.document_ids >= len(kept)
    found.streams["loss_weights"] = found.streams["loss_weights"].masked_fill(untrained, 0.0)
    return found
