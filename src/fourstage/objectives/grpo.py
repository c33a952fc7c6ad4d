"""Group relative policy optimisation: no critic, the group's mean is the baseline."""

from __future__ import annotations

from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.kl import k3
from fourstage.objectives.logprobs import token_logprobs_and_entropies
from fourstage.objectives.objective import Metrics, Sums, document_sums, metric_sums, trained_cells
from fourstage.objectives.policy import clipped_policy_loss, policy_metrics


def tokens_of_documents(batch: Batch) -> Tensor:
    """[documents] trained tokens of each document."""
    return document_sums((batch.streams["loss_weights"] != 0).float(), batch)


class GRPO:
    """`mean over sequences of (1 / |o|) sum_t [clipped_policy_loss_t + beta k3_t]`.

    DeepSeekMath (Shao et al., 2024), eq. 3 and 4: the KL to the reference is in the loss, a token
    at a time, and the gradient of k3 is that of KL(reference || policy). Advantages come from
    `group_advantages`, one number on all tokens of a response. On a batch's first update the ratio
    is 1 and the loss itself is near 0; its gradient is not.

    Reads the streams `loss_weights`, `old_logprobs`, `advantages`, `ref_logprobs` [cells]. A weight
    other than 0 or 1 weighs its token; |o| counts trained tokens all the same. Term: `sequences`.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coefficient: float = 0.0,
        temperature: float = 1.0,
    ):
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.kl_coefficient = kl_coefficient
        self.temperature = temperature

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"sequences": float((tokens_of_documents(batch) > 0).sum())}

    def sums(self, module: ActorCritic | Transformer, micro: Batch) -> tuple[Sums, Metrics]:
        policy = module.policy if isinstance(module, ActorCritic) else module
        cells = trained_cells(micro)
        streams = {name: stream[cells] for name, stream in micro.streams.items()}
        logprobs, entropies = token_logprobs_and_entropies(
            policy.logits,
            policy(micro.tokens, micro.layout)[cells],
            micro.targets[cells],
            policy.config.vocab_size,
            self.temperature,
            policy.plain_head,
        )
        loss, ratio, cut = clipped_policy_loss(
            logprobs, streams["old_logprobs"], streams["advantages"], self.clip_low, self.clip_high
        )
        metrics = policy_metrics(micro, cells, logprobs, ratio, cut, entropies)
        metrics |= metric_sums(streams["loss_weights"], policy_loss=loss)
        if self.kl_coefficient:
            loss = loss + self.kl_coefficient * k3(logprobs, streams["ref_logprobs"])
        tokens = tokens_of_documents(micro)[micro.document_ids[cells]].to(loss.dtype)
        return {"sequences": (loss * streams["loss_weights"] / tokens).sum()}, metrics
