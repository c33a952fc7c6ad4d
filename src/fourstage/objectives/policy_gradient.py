"""Policy optimisation: one objective for every algorithm of the table."""

from __future__ import annotations

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.algorithms import Algorithm
from fourstage.objectives.correction import Correction
from fourstage.objectives.kl import ESTIMATORS
from fourstage.objectives.logprobs import token_logprobs, token_logprobs_and_entropies
from fourstage.objectives.objective import (
    Metrics,
    Sums,
    Trained,
    metric_sums,
    tokens_of_documents,
    trained_cells,
)
from fourstage.objectives.policy import policy_metrics
from fourstage.objectives.surrogates import FARTHEST, SURROGATES, Clip, log_ratio
from fourstage.objectives.values import clipped_value_loss

Streams = dict[str, Tensor]


class PolicyGradient:
    """`mean of [w surrogate_t + beta kl_t] - entropy_coefficient H + value_coefficient value`.

    The surrogate, its ratio, the mean and the KL are those of `algorithm`; the loss of each token
    is summed over a step and divided by what the step has of tokens or responses, so nothing
    depends on micro-batches, packing or processes. On a batch's first update every ratio is 1 and
    the loss itself is near 0; its gradient is not.

    Reads the streams `loss_weights`, `old_logprobs`, `advantages` [cells]; `ref_logprobs` where the
    KL is in the loss, `rollout_logprobs` with a correction, `old_values` and `returns` with a
    critic. A weight other than 0 or 1 weighs its token; the length of a response counts trained
    tokens all the same. Terms: `policy`, `entropy`, `value`, `mix`.

    Args:
        temperature: of the rollout; log-probabilities are of logits divided by it.
        entropy_coefficient: of the mean entropy of a token, which is subtracted; 0 is none.
        correction: weights of the policy loss for a sampler that is not the trainer; None is none.
        value_clip, value_coefficient: of `clipped_value_loss`, with a critic; a mean over tokens.
        pretraining_mix: above 0, documents of pretraining text may be in the batch: cells with
            `mix_weights` (and `loss_weights` 0) add `-pretraining_mix` times their mean
            log-probability at temperature 1, the PPO-ptx of InstructGPT (eq. 2).
        on_policy: whether nothing was updated since the responses were drawn. Then the old
            log-probabilities are those of the pass itself, `old_logprobs` is not read, and every
            ratio is exactly 1.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        temperature: float = 1.0,
        entropy_coefficient: float = 0.0,
        correction: Correction | None = None,
        value_clip: float | None = 0.2,
        value_coefficient: float = 0.1,
        pretraining_mix: float = 0.0,
        on_policy: bool = False,
    ):
        algorithm.check()
        self.algorithm = algorithm
        self.clip = Clip(algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip)
        self.kl_coefficient = algorithm.kl_coefficient if algorithm.kl == "loss" else 0.0
        self.temperature = temperature
        self.entropy_coefficient = entropy_coefficient
        self.correction = correction
        self.value_clip = value_clip
        self.value_coefficient = value_coefficient
        self.pretraining_mix = pretraining_mix
        self.on_policy = on_policy

    def counts(self, batch: Batch) -> dict[str, float]:
        trained = float(batch.streams["loss_weights"].sum())
        counts = {"policy": trained}
        if self.algorithm.aggregation != "token_mean":
            counts["policy"] = float((tokens_of_documents(batch) > 0).sum())
        if self.algorithm.aggregation == "constant":
            counts["policy"] *= self.algorithm.constant_length
        if self.algorithm.needs_critic:
            counts["value"] = trained
        if self.entropy_coefficient:
            counts["entropy"] = trained
        if self._mixes(batch):
            counts["mix"] = float(batch.streams["mix_weights"].sum())
        return counts

    def sums(self, module: ActorCritic | Transformer, micro: Batch) -> tuple[Sums, Metrics]:
        policy = module.policy if isinstance(module, ActorCritic) else module
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
            entropy_gradient=bool(self.entropy_coefficient),
        )
        if self.on_policy:
            streams["old_logprobs"] = logprobs.detach()
        trained = Trained.of(micro, cells)
        loss, ratio, cut, metrics = self._policy_losses(logprobs, streams, trained)
        old = streams["old_logprobs"]
        metrics |= policy_metrics(micro, cells, logprobs, old, ratio, cut, entropies)
        if self.kl_coefficient:
            loss = loss + self.kl_coefficient * self._kl_losses(logprobs, streams, trained)
        sums = {"policy": self._total(loss, weights, trained)}
        if self.entropy_coefficient:
            sums["entropy"] = -self.entropy_coefficient * (entropies * weights).sum()
        if self.algorithm.needs_critic:
            sums["value"], of_values = self._value(module, micro, cells, streams)
            metrics |= of_values
        if self._mixes(micro):
            sums["mix"], metrics["mix_nll"] = self._mix(policy, micro, hidden)
        return sums, metrics

    def _policy_losses(
        self, logprobs: Tensor, streams: Streams, trained: Trained
    ) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """Loss, ratio and whether the clip took hold, each [tokens]; and metrics."""
        level = self.algorithm.ratio
        log_ratios = log_ratio(level, logprobs - streams["old_logprobs"], trained)
        loss, ratio, cut = SURROGATES[self.algorithm.surrogate](
            logprobs, log_ratios, streams["advantages"], self.clip
        )
        metrics = metric_sums(streams["loss_weights"], policy_loss=loss)
        if level == "sequence_sum":
            # The loss is one number of the whole response, of which each token carries its share.
            loss = loss / trained.spread(trained.tokens)
        if self.correction is not None:
            given, outside = self.correction.weights(
                streams["old_logprobs"], streams["rollout_logprobs"], trained
            )
            loss = loss * given
            metrics |= metric_sums(
                streams["loss_weights"],
                correction_weight=given,
                correction_fraction=outside.to(given.dtype),
            )
        return loss, ratio, cut, metrics

    def _kl_losses(self, logprobs: Tensor, streams: Streams, trained: Trained) -> Tensor:
        """[tokens] the estimate at each, or its share of that of its response."""
        algorithm, now, ref = self.algorithm, logprobs, streams["ref_logprobs"]
        log_ratios = logprobs - streams["old_logprobs"]
        if algorithm.kl_summed:
            now, ref, log_ratios = (trained.sums(each) for each in (now, ref, log_ratios))
        found = ESTIMATORS[algorithm.kl_estimator](now, ref)
        if algorithm.kl_weighted:
            found = found * torch.exp(log_ratios.clamp(-FARTHEST, FARTHEST))
        return trained.shared(found) if algorithm.kl_summed else found

    def _total(self, loss: Tensor, weights: Tensor, trained: Trained) -> Tensor:
        """What the tokens add to the numerator of the policy's mean."""
        if self.algorithm.aggregation != "sequence_mean":
            return (loss * weights).sum()
        return (loss * weights / trained.spread(trained.tokens).to(loss.dtype)).sum()

    def _value(
        self, module: ActorCritic | Transformer, micro: Batch, cells: Tensor, streams: Streams
    ) -> tuple[Tensor, Metrics]:
        critic = module.critic if isinstance(module, ActorCritic) else None
        if critic is None:
            raise ValueError(
                f"{self.algorithm.name} needs an ActorCritic with a critic; GRPO does without"
            )
        values = critic.scores(critic(micro.tokens, micro.layout)[cells])
        values = values.to(streams["returns"].dtype)
        loss, cut = clipped_value_loss(
            values, streams["old_values"], streams["returns"], self.value_clip
        )
        weights = streams["loss_weights"]
        told = {"value_loss": loss, "value_clip_fraction": cut.to(values.dtype)}
        return self.value_coefficient * (loss * weights).sum(), metric_sums(weights, **told)

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
