"""Learning from answers that are judged one by one: scores, thumbs, and single steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.objectives.objective import Metrics, Sums, metric_sums

Judgement = Literal["regression", "binary"]


def regression_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """`(r - y)^2`, each of one shape; y is standardised, so that 1 is what a constant leaves.

    Wang et al. (*HelpSteer2*, 2024, section 4.1) train their reward models so.
    """
    return (scores - labels).square()


def binary_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """`-y log sigmoid(r) - (1 - y) log sigmoid(-r)`, y in [0, 1], each of one shape.

    Cobbe et al. (*Training Verifiers*, 2021) and Lightman et al. (*Let's Verify Step by Step*,
    2023) train theirs so; a share of good votes is a label too.
    """
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")


class Judged:
    """The mean of `regression_loss` or `binary_loss` over the judgements of a step.

    `labels` and `label_weights` are [documents], or [documents, heads] for a module with several
    heads; a weight of 0 is a judgement that was not given. Term: `labels`.
    """

    def __init__(self, judgement: Judgement):
        self.judgement: Judgement = judgement

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"labels": float(batch.documents["label_weights"].sum())}

    def sums(self, module: Any, micro: Batch) -> tuple[Sums, Metrics]:
        hidden = module(micro.tokens, micro.layout)[micro.last_cells]
        scores = module.scores(hidden).to(torch.promote_types(hidden.dtype, torch.float32))
        labels, weights = (
            micro.documents[name].to(scores.dtype) for name in ("labels", "label_weights")
        )
        if self.judgement == "regression":
            loss = regression_loss(scores, labels)
            metrics = metric_sums(weights, squared_error=loss, score=scores, label=labels)
        else:
            loss = binary_loss(scores, labels)
            metrics = metric_sums(weights, **_read(loss, scores, labels))
        return {"labels": (loss * weights).sum()}, metrics


class StepJudged:
    """The mean of `binary_loss` over the judged steps of all documents: a process reward.

    `step_labels` [cells] in [0, 1] and `step_weights` [cells] stand at the cell of each step's last
    token, the last step's at the document's last cell. A causal model has read the step there, and
    nothing behind it. Lightman et al. (2023), section 2.5; Uesato et al. (2022). Term: `steps`.
    """

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"steps": float(batch.streams["step_weights"].sum())}

    def sums(self, module: Any, micro: Batch) -> tuple[Sums, Metrics]:
        cells = micro.streams["step_weights"].nonzero().squeeze(1)
        hidden = module(micro.tokens, micro.layout)[cells]
        scores = module.scores(hidden).to(torch.promote_types(hidden.dtype, torch.float32))
        labels = micro.streams["step_labels"][cells].to(scores.dtype)
        weights = micro.streams["step_weights"][cells].to(scores.dtype)
        loss = binary_loss(scores, labels)
        metrics = metric_sums(weights, **_read(loss, scores, labels))
        return {"steps": (loss * weights).sum()}, metrics


def _read(loss: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What binary judgements are watched by; a score of 0 is half right."""
    right = (scores.sign() * (labels - 0.5).sign() + 1) / 2
    return {"preference_loss": loss, "accuracy": right, "score": scores}
