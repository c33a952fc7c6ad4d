"""The advantages of an algorithm, from the scores of whole rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.errors import InputError
from fourstage.objectives.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    rewards_with_kl,
    spread,
    whiten,
)
from fourstage.objectives.algorithms import Algorithm
from fourstage.objectives.kl import ESTIMATORS
from fourstage.objectives.objective import document_sums

# Added to a deviation of rewards, as TRL has it.
_EPS = 1e-4

Streams = dict[str, Tensor]


@dataclass(frozen=True)
class Scored:
    """Rollouts and what their responses are worth.

    Attributes:
        batch: all responses of an iteration, with the streams `loss_weights`, `old_logprobs`, and
            `ref_logprobs` or `old_values` where the algorithm needs them.
        scores: [documents] the reward of each response.
        prompts: [documents] equal numbers for responses to the same prompt.
        kl_coefficient: beta of a KL in the reward.
        gamma, lam: of rewards to come.
    """

    algorithm: Algorithm
    batch: Batch
    scores: Tensor
    prompts: Tensor
    kl_coefficient: float
    gamma: float
    lam: float

    @property
    def weights(self) -> Tensor:
        return self.batch.streams["loss_weights"]

    @property
    def pays(self) -> bool:
        """Whether the KL is paid out of the reward."""
        return self.algorithm.kl == "reward" and self.kl_coefficient > 0

    def token_rewards(self, scores: Tensor) -> Tensor:
        """[cells] the KL's price at each trained cell, and the score at the last one.

        With the stream `turn_rewards`, what it has stands where it has it, and the rest of the
        score (what was taken off or added beside the turns) at the last one.
        """
        s = self.batch.streams
        old, turns = s["old_logprobs"], s.get("turn_rewards")
        if turns is not None:
            scores = scores - document_sums(turns, self.batch)
        found = rewards_with_kl(
            scores,
            old,
            s["ref_logprobs"] if self.pays else old,
            self.weights,
            self.batch.lengths,
            self.kl_coefficient if self.pays else 0.0,
            ESTIMATORS[self.algorithm.kl_estimator],
        )
        return found if turns is None else found + turns

    def response_rewards(self) -> Tensor:
        """[documents] the score less the price of all the response's tokens."""
        if not self.pays:
            return self.scores
        s, trained = self.batch.streams, self.weights != 0
        kl = ESTIMATORS[self.algorithm.kl_estimator](s["old_logprobs"], s["ref_logprobs"])
        return self.scores - self.kl_coefficient * document_sums(kl * trained, self.batch)


def estimate(
    algorithm: Algorithm,
    batch: Batch,
    scores: Tensor,
    prompts: Tensor,
    kl_coefficient: float | None = None,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Streams:
    """The streams that `PolicyGradient` learns from, each [cells], zero on untrained cells.

    Of all rollouts of an iteration at once, before they are dealt into minibatches: means and
    deviations are then of all of them.

    Args:
        batch, scores, prompts, gamma, lam: see `Scored`.
        kl_coefficient: beta now, where it follows a target; None is the algorithm's.

    Returns:
        `advantages`; with a critic, also `rewards` and `returns`.

    Raises:
        InputError: a stream that the algorithm needs is missing, or responses come in no groups.
    """
    beta = algorithm.kl_coefficient if kl_coefficient is None else kl_coefficient
    scored = Scored(algorithm, batch, scores, prompts, beta, gamma, lam)
    needed = ["old_values"] * algorithm.needs_critic + ["ref_logprobs"] * scored.pays
    for name in (name for name in needed if name not in batch.streams):
        raise InputError(f"{algorithm.name} learns from the stream {name}, which rollouts lack")
    if algorithm.needs_groups and len(prompts.unique()) == len(prompts):
        raise InputError(
            f"{algorithm.name} compares responses to one prompt, and each prompt has one: write "
            "group=8"
        )
    return ADVANTAGES[algorithm.advantage](scored)


def by_critic(scored: Scored) -> Streams:
    """Generalised advantage estimation against the critic's values."""
    batch, rewards = scored.batch, scored.token_rewards(scored.scores)
    advantages, returns = gae(
        rewards,
        batch.streams["old_values"],
        scored.weights,
        batch.lengths,
        scored.gamma,
        scored.lam,
    )
    if scored.algorithm.scale == "batch":
        advantages = whiten(advantages, scored.weights)
    return {"advantages": advantages, "rewards": rewards, "returns": returns}


def by_group(scored: Scored) -> Streams:
    """Each response against all to its prompt."""
    rewards, scale = scored.response_rewards(), scored.algorithm.scale
    found = group_advantages(rewards, scored.prompts, scale == "group", _EPS)
    if scale == "batch":
        found = found / (rewards.std() + _EPS)
    return _on_tokens(scored, found)


def by_others(scored: Scored) -> Streams:
    """Each response against the others to its prompt."""
    return _on_tokens(scored, leave_one_out_advantages(scored.response_rewards(), scored.prompts))


def by_rewards_to_go(scored: Scored) -> Streams:
    """What is still to come, less its mean over the batch."""
    return _to_go(scored, scored.scores)


def by_group_rewards_to_go(scored: Scored) -> Streams:
    """As `by_rewards_to_go`, of scores less the mean of their group."""
    return _to_go(scored, group_advantages(scored.scores, scored.prompts, scale_by_std=False))


ADVANTAGES: dict[str, Callable[[Scored], Streams]] = {
    "critic": by_critic,
    "group": by_group,
    "others": by_others,
    "rewards_to_go": by_rewards_to_go,
    "group_rewards_to_go": by_group_rewards_to_go,
}


def _to_go(scored: Scored, scores: Tensor) -> Streams:
    rewards, weights = scored.token_rewards(scores), scored.weights
    nothing = torch.zeros_like(rewards)
    # With values of nothing and lambda 1, an advantage is the sum of rewards from here on.
    found, _ = gae(rewards, nothing, weights, scored.batch.lengths, scored.gamma, 1.0)
    if scored.algorithm.scale == "batch":
        return {"advantages": whiten(found, weights)}
    mean = (found * weights).sum() / weights.sum()
    return {"advantages": (found - mean) * (weights != 0)}


def _on_tokens(scored: Scored, advantages: Tensor) -> Streams:
    return {"advantages": spread(advantages, scored.batch.lengths, scored.weights)}


def leave_out(batch: Batch, documents: Tensor) -> Batch:
    """The batch with some responses out of the loss, such as those cut off at `max_new_tokens`.

    They still count among the rewards of their group, so advantages are to be estimated before
    (overlong filtering, Yu et al., DAPO, 2025, section 3.4).

    Args:
        documents: [documents] bool, which ones; kept as the documents' `left_out`.
    """
    weights = batch.streams["loss_weights"]
    kept = weights * ~documents[batch.document_ids]
    return replace(
        batch,
        streams=batch.streams | {"loss_weights": kept},
        documents=batch.documents | {"left_out": documents.to(weights.dtype)},
    )
