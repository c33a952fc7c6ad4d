"""Batches of reinforcement learning: the policy's own responses, scored and turned into advantages.

An iteration samples once and passes over what it got `epochs` times in `minibatches` updates each.
What is held between two steps (the rollouts, the KL coefficient) is part of the checkpoint, and
randomness depends on (seed, purpose, iteration) alone, so a killed run goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fourstage import tasks as checkers
from fourstage.data.batch import Batch, Example
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import scores, trained_logprobs, trained_values
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.advantages import (
    explained_variance,
    gae,
    group_advantages,
    rewards_with_kl,
    spread,
    whiten,
)
from fourstage.objectives.kl import AdaptiveKL, k1
from fourstage.parallel.group import Group
from fourstage.randomness import permutation, seed_for
from fourstage.recipe import RL
from fourstage.tasks import Task
from fourstage.training.contracts import Source

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


@dataclass(frozen=True)
class Players:
    """The models of reinforcement learning; only `trained` changes.

    Attributes:
        trained: the policy, and for PPO the critic.
        reference: the policy as it was before the first update.
        reward_model: scores a response; its mean and deviation are applied here. None where the
            stage needs none.
    """

    trained: ActorCritic
    reference: Transformer
    reward_model: Transformer | None


class RolloutSource:
    """Answers step s with a minibatch of iteration `s // (epochs * minibatches)`.

    Args:
        tasks: the prompts to respond to, walked through in a fresh permutation each epoch.
        section: `rl` of a resolved recipe.
        mix: pretraining text for PPO-ptx, one batch of it beside each minibatch.
        group: processes that deal out prompts and responses among them; each then has them all.
        say: prints a line.

    Attributes:
        whole: gives a context in which `players.trained` holds its present weights.
        rows: responses that are drawn at a time; falls where they do not fit the memory.
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
    ):
        self.group = group or Group()
        self.say = say
        self.whole: Callable[[], AbstractContextManager] = nullcontext
        self.players = players
        self.tokenizer = tokenizer
        self.tasks = list(tasks)
        self.prompts = [tokenizer.chat_prompt(task.prompt) for task in self.tasks]
        # Resolved: none of its numbers is open.
        self.section: Any = section
        self.seed = seed
        self.mix = mix
        self.rows: int = self.section.rollout_batch
        self.kl = AdaptiveKL(section.kl_coefficient, section.kl_target, section.kl_horizon)
        self.iteration = -1
        self.rollouts: Batch | None = None
        self.numbers: dict[str, float] = {}

    @property
    def updates(self) -> int:
        """Steps of one iteration."""
        return self.section.epochs * self.section.minibatches

    @property
    def most_cells(self) -> int | None:
        """Cells that no batch has more of; not known where text of pretraining is beside it."""
        if self.mix is not None:
            return None
        section, longest = self.section, max(map(len, self.prompts))
        largest = -(-section.rollout_batch // section.minibatches)
        return largest * (longest + section.max_new_tokens)

    def batch(self, step: int) -> Batch:
        """The minibatch of a step; the first step of an iteration samples it first."""
        iteration, update = divmod(step, self.updates)
        if iteration != self.iteration or self.rollouts is None:
            with self.whole():
                self.rollouts = self.roll(iteration)
            self.iteration = iteration
        epoch, number = divmod(update, self.section.minibatches)
        order = permutation(len(self.rollouts.lengths), self.seed, "minibatches", iteration, epoch)
        part = np.array_split(order, self.section.minibatches)[number]
        minibatch = self.rollouts.select(part.tolist())
        return with_text(minibatch, self.mix.batch(step)) if self.mix else minibatch

    def roll(self, iteration: int) -> Batch:
        """Samples, scores and values the responses of an iteration."""
        chosen = self._chosen(iteration)
        responses = self._respond(chosen, iteration)
        batch = as_batch(responses)
        reward_scores = self._scores(responses)
        batch.documents["scores"] = reward_scores
        self._add_logprobs(batch, responses)
        gap = k1(batch.streams["old_logprobs"], batch.streams["ref_logprobs"])
        kl = float(gap.sum()) / len(responses)
        self.numbers = {
            "iteration": iteration,
            "reward": float(reward_scores.mean()),
            "kl": kl,
            "kl_coefficient": self.kl.coefficient,
            "length": float(np.mean([len(each.tokens) for each in responses])),
            "finished": float(np.mean([self._ended(each) for each in responses])),
        }
        golds = [
            checkers.gold(self.tasks[i], r.text) for i, r in self._checkable(chosen, responses)
        ]
        if golds:  # measured and written down; nothing reads it
            self.numbers["gold"] = float(np.mean(golds))
        if self.section.algorithm == "grpo":
            self._add_group_advantages(batch, reward_scores)
        else:
            self._add_advantages(batch, reward_scores)
        self.kl.update(kl, len(responses))
        return batch

    def _chosen(self, iteration: int) -> list[int]:
        """Indices of the tasks of an iteration, each `group` times in a row."""
        count = self.section.rollout_batch // self.section.group
        found = []
        for place in range(iteration * count, (iteration + 1) * count):
            epoch, index = divmod(place, len(self.tasks))
            order = permutation(len(self.tasks), self.seed, "prompts", epoch)
            found += [int(order[index])] * self.section.group
        return found

    def _respond(self, chosen: Sequence[int], iteration: int) -> list[Response]:
        """One response to each chosen prompt, at the temperature and from the whole distribution:
        a truncated one would bias the probability ratio."""
        section = self.section
        sampling = Sampling(
            temperature=section.temperature,
            max_new_tokens=section.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
        )
        seeds = [seed_for(self.seed, "rollout", iteration, i) for i in range(len(chosen))]
        prompts = [self.prompts[i] for i in chosen]
        policy = self.players.trained.policy
        engine, share = Engine(policy, max_batch=self.rows), self.group.share
        done = engine.generate(share(prompts), sampling, share(seeds))
        self._keep_rows(engine.max_batch)
        tokens = [torch.tensor(each.tokens, dtype=torch.long) for each in done]
        logprobs = [torch.from_numpy(each.logprobs) for each in done]
        tokens = self.group.collect(tokens, len(chosen), torch.long)
        logprobs = self.group.collect(logprobs, len(chosen))
        return [
            self._response(prompt, drawn.tolist(), each.numpy())
            for prompt, drawn, each in zip(prompts, tokens, logprobs, strict=True)
        ]

    def _keep_rows(self, fitted: int) -> None:
        """Goes on with what fitted the memory of every process; a run that is resumed does too."""
        fewest = int(self.group.lowest(fitted))
        if fewest < self.rows:
            self.say(f"rl: out of memory in the rollouts; from here on {fewest} at a time")
            self.rows = fewest

    def _response(self, prompt: Sequence[int], drawn: list[int], logprobs: np.ndarray) -> Response:
        stopped = bool(drawn) and drawn[-1] in self.tokenizer.stop_ids
        text = self.tokenizer.decode(drawn)
        return Response(tuple(prompt), tuple(drawn), text, stopped, logprobs)

    def _ended(self, response: Response) -> bool:
        """Whether the response ended its turn; the end of a document is no end of a turn."""
        return bool(response.tokens) and response.tokens[-1] == self.tokenizer.end_of_turn

    def _scores(self, responses: Sequence[Response]) -> Tensor:
        """[responses] `(score - reward_mean) / reward_std`; without an end, the penalty instead."""
        assert self.players.reward_model is not None, "rollouts are scored by a reward model"
        rows = self.group.share(reward_rows(self.tokenizer, responses))
        own = torch.from_numpy(scores(self.players.reward_model, rows))[:, None].unbind()
        found = torch.cat(self.group.collect(own, len(responses), torch.double)).numpy()
        ended = np.array([self._ended(each) for each in responses])
        return torch.from_numpy(np.where(ended, found, self.section.missing_end_penalty)).float()

    def _checkable(
        self, chosen: Sequence[int], responses: Sequence[Response]
    ) -> list[tuple[int, Response]]:
        pairs = zip(chosen, responses, strict=True)
        return [(i, each) for i, each in pairs if self.tasks[i].facts.get("checker")]

    def _add_logprobs(self, batch: Batch, responses: Sequence[Response]) -> None:
        """Log-probabilities under the policy now, the reference, and as they were drawn."""
        temperature, streams = self.section.temperature, batch.streams
        policy = self.players.trained.policy
        reference = self.players.reference
        streams["old_logprobs"] = self._shared(
            batch, lambda part: trained_logprobs(policy, part, temperature)
        )
        streams["ref_logprobs"] = self._shared(
            batch, lambda part: trained_logprobs(reference, part, temperature)
        )
        drawn = torch.from_numpy(np.concatenate([each.logprobs for each in responses]))
        trained = streams["loss_weights"] != 0
        streams["rollout_logprobs"] = torch.zeros(batch.cells).masked_scatter(
            trained, drawn.float()
        )

    def _shared(self, batch: Batch, number: Callable[[Batch], Tensor]) -> Tensor:
        """`number(batch)` [cells], of which each process works out that of its documents."""
        if self.group.world_size == 1:
            return number(batch)
        documents = self.group.share(range(len(batch.lengths)))
        part = batch.select(documents) if documents else None
        own = list(number(part).split(part.lengths)) if part else []
        return torch.cat(self.group.collect(own, len(batch.lengths)))

    def _add_group_advantages(self, batch: Batch, reward_scores: Tensor) -> None:
        """GRPO: each response against the others to its prompt; the KL is in the loss."""
        group = torch.arange(len(reward_scores)) // self.section.group
        advantages = group_advantages(reward_scores, group)
        weights = batch.streams["loss_weights"]
        batch.streams["advantages"] = spread(advantages, batch.lengths, weights)

    def _add_advantages(self, batch: Batch, reward_scores: Tensor) -> None:
        """PPO: the KL in the reward, advantages by GAE, whitened after the returns were taken."""
        section, streams, lengths = self.section, batch.streams, batch.lengths
        weights = streams["loss_weights"]
        critic = self.players.trained.critic
        assert critic is not None, "PPO has a critic"
        values = self._shared(batch, lambda part: trained_values(critic, part))
        rewards = rewards_with_kl(
            reward_scores,
            streams["old_logprobs"],
            streams["ref_logprobs"],
            weights,
            lengths,
            self.kl.coefficient,
        )
        advantages, returns = gae(rewards, values, weights, lengths, section.gamma, section.lam)
        streams["rewards"], streams["old_values"], streams["returns"] = rewards, values, returns
        streams["advantages"] = whiten(advantages, weights)
        self.numbers["explained_variance"] = explained_variance(values, returns, weights)

    def metrics(self) -> dict[str, float]:
        """Means of the newest rollouts: reward (the proxy), gold, KL in nats a response."""
        return dict(self.numbers)

    def state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "rows": self.rows,
            "kl": self.kl.state(),
            "numbers": self.numbers,
            "rollouts": self.rollouts.state() if self.rollouts is not None else None,
            "mix": self.mix.state() if self.mix else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.iteration = int(state["iteration"])
        self.rows = int(state.get("rows", self.rows))
        self.kl.restore(state["kl"])
        self.numbers = dict(state["numbers"])
        held = state["rollouts"]
        self.rollouts = Batch.from_state(held) if held is not None else None
        if self.mix:
            self.mix.restore(state["mix"])


def as_batch(responses: Sequence[Response]) -> Batch:
    """Prompt and response as one document each; the response's tokens alone are trained."""
    examples = []
    for each in responses:
        tokens = np.array([*each.prompt, *each.tokens], np.int64)
        examples.append(Example(tokens, np.arange(len(tokens)) >= len(each.prompt)))
    batch = Batch.language(examples)
    batch.documents["prompt_tokens"] = torch.tensor([len(each.prompt) for each in responses])
    return batch


def with_text(minibatch: Batch, text: Batch) -> Batch:
    """The minibatch with documents of pretraining text behind it, which `mix_weights` mark.

    Every other stream, and the numbers a document has, are zero on them.
    """
    cells, documents = text.cells, len(text.lengths)
    streams = {
        name: torch.cat([stream, stream.new_zeros(cells)])
        for name, stream in minibatch.streams.items()
    }
    own = torch.zeros(minibatch.cells)
    streams["mix_weights"] = torch.cat([own, text.streams["loss_weights"]])
    return Batch(
        torch.cat([minibatch.tokens, text.tokens]),
        (*minibatch.lengths, *text.lengths),
        torch.cat([minibatch.targets, text.targets]),
        streams,
        {
            name: torch.cat([values, values.new_zeros(documents)])
            for name, values in minibatch.documents.items()
        },
    )
