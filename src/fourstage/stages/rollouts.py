"""Batches of reinforcement learning: the policy's own responses, scored and turned into advantages.

An iteration samples once and passes over what it got `epochs` times in `minibatches` updates each.
What is held between two steps (the rollouts, the KL coefficient) is part of the checkpoint, and
randomness depends on (seed, purpose, iteration) alone, so a killed run goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.evaluation.scoring import trained_logprobs, trained_values
from fourstage.generation.elsewhere import Elsewhere
from fourstage.objectives.advantages import explained_variance
from fourstage.objectives.estimating import estimate, leave_out
from fourstage.objectives.kl import AdaptiveKL, k1
from fourstage.parallel.group import Group
from fourstage.recipe import RL
from fourstage.stages.ahead import Ahead, Drawn, frozen_copy
from fourstage.stages.drawing import Drawer
from fourstage.stages.episodes import Players, of_each, with_text
from fourstage.stages.iterating import Iterations
from fourstage.stages.judging import Judge
from fourstage.tasks import Task
from fourstage.training.contracts import Source

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


class RolloutSource(Iterations):
    """Answers step s with a minibatch of iteration `s // (epochs * minibatches)`.

    Args:
        tasks: the prompts to respond to.
        section: `rl` of a resolved recipe.
        mix: pretraining text for PPO-ptx, one batch of it beside each minibatch.
        group: processes that deal out prompts and responses among them; each then has them all.
        say: prints a line.
        judge: gives responses their numbers; else the reward model alone.
        elsewhere: draws in place of the engine here.

    Attributes:
        algorithm: its row, with what the section changes.
        resets: how often the reference became the policy.
    """

    def __init__(
        self,
        players: Players,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        section: RL,
        seed: int,
        mix: Source | None = None,
        group: Group | None = None,
        say: Callable[[str], None] = print,
        judge: Judge | None = None,
        elsewhere: Elsewhere | None = None,
    ):
        self.group = group or Group()
        policy, behind = players.trained.policy, bool(section.behind)
        rolling = policy
        if behind:
            rolling = frozen_copy(policy, section.rollout_device, self.group.world_size)
        # A thread has sums of its own.
        drawing = self.group.beside() if behind else self.group
        super().__init__(Drawer(rolling, tokenizer, tasks, section, seed, drawing, say, elsewhere))
        self.players = players
        self.algorithm = section.row()
        self.mix = mix
        penalty = section.missing_end_penalty
        self.judge = judge or Judge(
            section, tokenizer, players.reward_model, self.group, missing_end=penalty
        )
        self.ahead = Ahead(policy, rolling, self._drawn) if behind else None
        self._drawing_judge = self.judge.beside(drawing) if behind else self.judge
        beta = self.algorithm.kl_coefficient
        self.kl = AdaptiveKL(beta, section.kl_target, section.kl_horizon)
        self.resets = 0
        self._reference: dict[str, Tensor] = {}

    @property
    def most_cells(self) -> int | None:
        """Cells that no batch has more of; not known where text of pretraining is beside it."""
        if self.mix is not None:
            return None
        largest = -(-self.section.rollout_batch // self.section.minibatches)
        return largest * self.drawer.longest

    def batch(self, step: int) -> Batch:
        minibatch = self.minibatch(step)
        if self.mix:
            minibatch = with_text(minibatch, self.mix.batch(step))
        if self.section.value_warmup:
            alone = float(self._warms_up(self.iteration))
            minibatch.documents["critic_alone"] = torch.full((len(minibatch.lengths),), alone)
        return minibatch

    def roll(self, iteration: int) -> Batch:
        """Samples, scores and values the responses of an iteration."""
        self._reset_reference(iteration)
        batch, told = self._next(iteration)
        cut = batch.documents.pop("cut", None)
        self._add_logprobs(batch)
        self.numbers = {"iteration": iteration, **told}
        self._add_advantages(batch)
        kl = self.numbers.get("kl")
        if kl is not None and not self._warms_up(iteration):
            self.kl.update(kl, len(batch.lengths))
        if cut is not None:
            self.numbers["left_out"] = float(cut.float().mean())
            batch = leave_out(batch, cut)
        return batch

    def _next(self, iteration: int) -> Drawn:
        """What an iteration drew; one that is ahead begins with the next."""
        if self.ahead is None:
            return self._drawn(iteration)
        drawn = self.ahead.take(iteration)
        steps = self.section.steps
        if steps is None or (iteration + 1) * self.updates < steps:
            self.ahead.start(iteration + 1)
        return drawn

    def _drawn(self, iteration: int) -> Drawn:
        """The responses of an iteration with their scores, and as how likely they were drawn."""
        drawn = self.drawer.draw(iteration, self._drawing_judge)
        responses = [drawn.responses[index] for index in drawn.kept]
        batch = drawn.batch()
        logprobs = torch.from_numpy(np.concatenate([each.logprobs for each in responses]))
        trained = batch.streams["loss_weights"] != 0
        batch.streams["rollout_logprobs"] = torch.zeros(batch.cells).masked_scatter(
            trained, logprobs.float()
        )
        if self.section.overlong == "leave_out":
            batch.documents["cut"] = torch.tensor([not each.finished for each in responses])
        return batch, self.drawer.numbers(drawn, self._drawing_judge)

    def close(self) -> None:
        """Waits for what is being drawn, whatever ended training."""
        try:
            if self.ahead is not None:
                self.ahead.wait()
        finally:
            super().close()

    def _warms_up(self, iteration: int) -> bool:
        """Whether the critic alone is trained."""
        return iteration < self.section.value_warmup

    def _reset_reference(self, iteration: int) -> None:
        """Makes the present policy the reference, every `reference_reset` iterations."""
        every, reference = self.section.reference_reset, self.players.reference
        if not every or reference is None or iteration // every <= self.resets:
            return
        self.resets = iteration // every
        policy = self.players.trained.policy.state_dict()
        # A copy of its own: a checkpoint may be on its way to the disk.
        self._reference = {name: value.detach().cpu().clone() for name, value in policy.items()}
        reference.load_state_dict(self._reference)

    def _add_logprobs(self, batch: Batch) -> None:
        """Log-probabilities under the policy now and the reference; values.

        `old_logprobs` are of the policy at the start of the iteration, also where it was drawn with
        earlier weights: ratios are clipped around these, and a correction weighs what the earlier
        ones drew (decoupled PPO: Hilton et al., 2021; Fu et al., *AReaL*, 2025, eq. 5). Where the
        update's own pass tells them, those that responses were drawn with stand for them: a forward
        pass less.
        """
        temperature, streams = self.section.temperature, batch.streams
        policy, critic = self.players.trained.policy, self.players.trained.critic
        reference = self.players.reference
        if self.section.is_on_policy:
            streams["old_logprobs"] = streams["rollout_logprobs"].clone()
        else:
            streams["old_logprobs"] = of_each(
                self.group, batch, lambda part: trained_logprobs(policy, part, temperature)
            )
        if reference is not None:
            streams["ref_logprobs"] = of_each(
                self.group, batch, lambda part: trained_logprobs(reference, part, temperature)
            )
        if critic is not None:
            streams["old_values"] = of_each(
                self.group, batch, lambda part: trained_values(critic, part)
            )

    def _add_advantages(self, batch: Batch) -> None:
        section, streams = self.section, batch.streams
        if "ref_logprobs" in streams:
            gap = k1(streams["old_logprobs"], streams["ref_logprobs"])
            self.numbers["kl"] = float(gap.sum()) / len(batch.lengths)
            self.numbers["kl_coefficient"] = self.kl.coefficient
        prompts = torch.arange(len(batch.lengths)) // section.group
        streams |= estimate(
            self.algorithm,
            batch,
            batch.documents["scores"],
            prompts,
            self.kl.coefficient,
            section.gamma,
            section.lam,
        )
        if "returns" in streams:
            self.numbers["explained_variance"] = explained_variance(
                streams["old_values"], streams["returns"], streams["loss_weights"]
            )

    def state(self) -> dict[str, Any]:
        ahead = {"ahead": self.ahead.state()} if self.ahead is not None else {}
        return (
            super().state()
            | ahead
            | {
                "kl": self.kl.state(),
                "mix": self.mix.state() if self.mix else {},
                "resets": self.resets,
                "reference": self._reference,
            }
        )

    def restore(self, state: dict[str, Any]) -> None:
        if self.ahead is not None:
            # First of all: what is being drawn moves the drawer's place until it is done.
            self.ahead.restore(state.get("ahead", {}))
        super().restore(state)
        self.kl.restore(state["kl"])
        if self.mix:
            self.mix.restore(state["mix"])
        self.resets = int(state.get("resets", 0))
        self._reference = dict(state.get("reference", {}))
        if self._reference and self.players.reference is not None:
            self.players.reference.load_state_dict(
                {name: torch.as_tensor(value) for name, value in self._reference.items()}
            )
