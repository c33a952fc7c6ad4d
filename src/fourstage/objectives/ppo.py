"""Proximal policy optimisation with a critic of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import token_logprobs, token_logprobs_and_entropies
from fourstage.objectives.objective import Metrics, Sums, metric_sums, trained_cells
from fourstage.objectives.policy import clipped_policy_loss, policy_metrics


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """`0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)`, each [tokens].

    As in lm-human-preferences and PPO's own code (Huang et al., *The 37 Implementation Details of
    PPO*, 2022, item 9). `clip` None is the plain squared error. Also returns whether the
    clipped term was the larger.
    """
    free = (values - returns).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    held = values.clamp(old_values - clip, old_values + clip)
    clipped = (held - returns).square()
    return torch.maximum(free, clipped) / 2, clipped > free


class PPO:
    """Clipped policy and value losses, each a mean over the trained tokens of the step.

    `clipped_policy_loss + value_coefficient * clipped_value_loss` (Schulman et al., 2017, eq. 9,
    without the entropy bonus); the KL to the reference is in the advantages (`rewards_with_kl`).
    Reads the streams `loss_weights`, `old_logprobs`, `advantages`, `old_values`, `returns` [cells].

    With `pretraining_mix` above 0, documents of pretraining text may be in the batch: cells with
    `mix_weights` (and `loss_weights` 0) add `-pretraining_mix` times their mean log-probability at
    temperature 1, the PPO-ptx of InstructGPT (eq. 2). Terms: `policy`, `value`, `mix`.
    """

    def __init__(
        self,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_coefficient: float = 0.1,
        temperature: float = 1.0,
        pretraining_mix: float = 0.0,
    ):
        self.clip = clip
        self.value_clip = value_clip
        self.value_coefficient = value_coefficient
        self.temperature = temperature
        self.pretraining_mix = pretraining_mix

    def counts(self, batch: Batch) -> dict[str, float]:
        trained = float(batch.streams["loss_weights"].sum())
        counts = {"policy": trained, "value": trained}
        if self._mixes(batch):
            counts["mix"] = float(batch.streams["mix_weights"].sum())
        return counts

    def sums(self, module: ActorCritic, micro: Batch) -> tuple[Sums, Metrics]:
        policy, critic = module.policy, module.critic
        if critic is None:
            raise ValueError("PPO needs an ActorCritic with a critic; GRPO does without")
        cells = trained_cells(micro)
        streams = {name: stream[cells] for name, stream in micro.streams.items()}
        weights = streams["loss_weights"]
        hidden = policy(micro.tokens, micro.layout)
        logprobs, entropies = token_logprobs_and_entropies(
            policy.logits,
            hidden[cells],
            micro.targets[cells],
            policy.config.vocab_size,
            self.temperature,
            policy.plain_head,
        )
        policy_loss, ratio, cut = clipped_policy_loss(
            logprobs, streams["old_logprobs"], streams["advantages"], self.clip, self.clip
        )
        values = critic.scores(critic(micro.tokens, micro.layout)[cells]).to(logprobs.dtype)
        value_loss, value_cut = clipped_value_loss(
            values, streams["old_values"], streams["returns"], self.value_clip
        )
        sums = {
            "policy": (policy_loss * weights).sum(),
            "value": self.value_coefficient * (value_loss * weights).sum(),
        }
        metrics = policy_metrics(micro, cells, logprobs, ratio, cut, entropies)
        metrics |= metric_sums(
            weights,
            policy_loss=policy_loss,
            value_loss=value_loss,
            value_clip_fraction=value_cut.to(values.dtype),
        )
        if self._mixes(micro):
            sums["mix"], metrics["mix_nll"] = self._mix(policy, micro, hidden)
        return sums, metrics

    def _mixes(self, batch: Batch) -> bool:
        return bool(self.pretraining_mix) and "mix_weights" in batch.streams

    def _mix(
        self, policy: Transformer, micro: Batch, hidden: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        cells = micro.streams["mix_weights"].nonzero().squeeze(1)
        weights = micro.streams["mix_weights"][cells]
        logprobs = token_logprobs(
            policy.logits,
            hidden[cells],
            micro.targets[cells],
            policy.config.vocab_size,
            weight=policy.plain_head,
        )
        nll = -(logprobs * weights).sum()
        return self.pretraining_mix * nll, (nll.detach(), weights.sum())
