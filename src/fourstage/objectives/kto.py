"""Learning from single responses that are good or bad: KTO."""

from __future__ import annotations

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.errors import InputError
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.objective import Metrics, Sums
from fourstage.objectives.responses import (
    document_weights,
    reference_logprobs,
    response_logprobs,
)

# What `labels` of documents say.
DESIRABLE, MISMATCHED, UNDESIRABLE = 1, 0, -1


class KTO:
    """`w_d (1 - sigmoid(beta (D - z)))` of good responses, `w_u (1 - sigmoid(beta (z - D)))` of
    bad ones.

    `D = log policy - log reference` of a response, summed over its tokens (Ethayarajh et al.,
    2024, eq. 7 and 8), averaged over the labelled responses of a step. `z`, where the value of a
    response turns, is the mean of D over prompts with the responses of others, at least 0 and
    without gradient. It is of the whole step, so it is surveyed first (`Surveys`).

    Documents have `labels`: 1 good, -1 bad, 0 mismatched and read for z alone
    (`fourstage.objectives.mismatching`); and `ref_logprobs`, of cells or of documents. `weights`
    [documents], where the batch has them, weigh a response. Term: `responses`.

    Metrics: `preference_loss`; `z`; `reward_desirable`, `reward_undesirable`, beta times D;
    `logprobs_desirable`, `logprobs_undesirable`, nats a response.
    """

    def __init__(self, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0):
        if beta <= 0 or desirable < 0 or undesirable < 0:
            raise InputError(
                f"kto: beta={beta:g}, desirable={desirable:g}, undesirable={undesirable:g}: write "
                "a beta above 0 and weights of at least 0"
            )
        self.beta = beta
        self.desirable = desirable
        self.undesirable = undesirable

    def surveyed(self, batch: Batch) -> Batch:
        """The mismatched documents.

        Raises:
            InputError: there are none.
        """
        return _chosen(batch, batch.documents["labels"] == MISMATCHED, "mismatched")

    def survey(self, module: ActorCritic | Transformer, micro: Batch) -> Tensor:
        """[2] the sum of D, and of how many documents."""
        with torch.no_grad():
            logprobs = response_logprobs(module, micro).of_documents
        weights = document_weights(micro, logprobs.dtype)
        ratios = logprobs - reference_logprobs(micro)
        return torch.stack([(ratios * weights).sum(), weights.sum()])

    def informed(self, batch: Batch, totals: Tensor | None) -> Batch:
        """The labelled documents, each with `z`; 0 where nothing is known or weighed."""
        labelled = _chosen(batch, batch.documents["labels"] != MISMATCHED, "labelled")
        z = torch.zeros(())
        if totals is not None and bool(totals[1] != 0):
            z = (totals[0] / totals[1]).clamp(min=0)
        z = z.to(batch.tokens.device)
        labelled.documents["z"] = z.expand(len(labelled.lengths)).clone()
        return labelled

    def counts(self, batch: Batch) -> dict[str, float]:
        labels = batch.documents["labels"]
        weights = document_weights(batch, torch.double)
        return {"responses": float((weights * (labels != MISMATCHED)).sum())}

    def sums(self, module: ActorCritic | Transformer, micro: Batch) -> tuple[Sums, Metrics]:
        if "z" not in micro.documents:
            raise ValueError("KTO needs z of the whole step: give it a batch that was surveyed")
        labels, z = micro.documents["labels"], micro.documents["z"]
        logprobs = response_logprobs(module, micro).of_documents
        ratios = logprobs - reference_logprobs(micro)
        good = labels == DESIRABLE
        worth = self.beta * (ratios - z)
        loss = torch.where(
            good,
            self.desirable * (1 - torch.sigmoid(worth)),
            self.undesirable * (1 - torch.sigmoid(-worth)),
        )
        weights = document_weights(micro, ratios.dtype)
        found = ratios.detach()
        metrics = {
            "preference_loss": _of(loss.detach(), weights),
            "z": _of(z, weights),
            "reward_desirable": _of(self.beta * found, weights * good),
            "reward_undesirable": _of(self.beta * found, weights * ~good),
            "logprobs_desirable": _of(logprobs.detach(), weights * good),
            "logprobs_undesirable": _of(logprobs.detach(), weights * ~good),
        }
        return {"responses": (loss * weights).sum()}, metrics


def _of(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return (values * weights).sum(), weights.sum()


def _chosen(batch: Batch, which: Tensor, kind: str) -> Batch:
    chosen = which.nonzero().squeeze(1).tolist()
    if not chosen:
        raise InputError(
            f"a step of KTO has no {kind} response: labels of documents are 1 (good), -1 (bad) and "
            "0 (mismatched, from with_mismatches)"
        )
    return batch.select(chosen)
