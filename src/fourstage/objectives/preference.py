"""Learning from comparisons without a reward model: DPO and its kin."""

from __future__ import annotations

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.comparing import pair_rows
from fourstage.objectives.objective import Metrics, Sums, metric_sums
from fourstage.objectives.preference_losses import LOSSES, Responses, rewards
from fourstage.objectives.preferences import Preference
from fourstage.objectives.responses import (
    Weighed,
    document_weights,
    reference_logprobs,
    response_logprobs,
)


class DirectPreference:
    """The mean of a preference loss over the pairs of a step, and the chosen's next-token loss.

    Pairs are those of `pair_rows`; a response is a document's trained tokens. Reads the stream
    `loss_weights`, and where the loss has a reference `ref_logprobs` (of cells, or of documents and
    summed). `weights` [documents], where the batch has them, weigh a pair, and are read at the
    chosen document. Terms: `pairs`, `nll`.

    Metrics: `preference_loss`; `accuracy`, the share of pairs whose chosen response is worth more;
    `margin`, `reward_chosen`, `reward_rejected`; `logprobs_chosen`, `logprobs_rejected`, nats a
    response; `nll`, nats a token of the chosen.
    """

    def __init__(self, preference: Preference):
        preference.check()
        self.preference = preference

    def counts(self, batch: Batch) -> dict[str, float]:
        of_chosen = _chosen_weights(batch, pair_rows(batch), torch.double)
        counts = {"pairs": float(of_chosen.sum())}
        if self.preference.nll_coefficient:
            of_tokens = of_chosen[batch.document_ids]
            counts["nll"] = float((batch.streams["loss_weights"] * of_tokens).sum())
        return counts

    def sums(self, module: ActorCritic | Transformer, micro: Batch) -> tuple[Sums, Metrics]:
        told, pairs = self.preference, pair_rows(micro)
        read = response_logprobs(module, micro)
        chosen, rejected = self._sides(read, micro, pairs)
        loss = LOSSES[told.loss](chosen, rejected, told)
        weights = document_weights(micro, loss.dtype)[pairs[:, 0]]
        worth, less = rewards(chosen, told).detach(), rewards(rejected, told).detach()
        metrics = metric_sums(
            weights,
            preference_loss=loss,
            accuracy=((worth - less).sign() + 1) / 2,  # a tie is half right
            margin=worth - less,
            reward_chosen=worth,
            reward_rejected=less,
            logprobs_chosen=chosen.logprobs,
            logprobs_rejected=rejected.logprobs,
        )
        sums = {"pairs": (loss * weights).sum()}
        of_tokens = read.trained.spread(_chosen_weights(micro, pairs, loss.dtype))
        nll = -(read.logprobs * of_tokens).sum()
        metrics["nll"] = (nll.detach(), (read.weights * of_tokens).sum())
        if told.nll_coefficient:
            sums["nll"] = told.nll_coefficient * nll
        return sums, metrics

    def _sides(self, read: Weighed, micro: Batch, pairs: Tensor) -> tuple[Responses, Responses]:
        logprobs = read.of_documents
        none = torch.zeros_like(logprobs)
        ref = reference_logprobs(micro) if self.preference.has_reference else none
        tokens = read.trained.tokens.clamp(min=1)
        chosen, rejected = (Responses(logprobs[i], ref[i], tokens[i]) for i in pairs.unbind(1))
        return chosen, rejected


def _chosen_weights(batch: Batch, pairs: Tensor, dtype: torch.dtype) -> Tensor:
    """[documents] the weight of a pair at the better one of its responses, 0 at the other."""
    weights = document_weights(batch, dtype)
    chosen = pairs[:, 0]
    return torch.zeros_like(weights).index_put((chosen,), weights[chosen])
