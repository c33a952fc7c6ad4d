"""Learning which of two or more responses is better: reward modelling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.objectives.comparing import Compared, compared
from fourstage.objectives.comparison_losses import Ties, bradley_terry_loss, with_ties_loss
from fourstage.objectives.logprobs import token_logprobs
from fourstage.objectives.objective import Metrics, Sums, metric_sums


class BradleyTerry:
    """The mean over groups of the mean of `bradley_terry_loss` over a group's comparisons.

    A group is a pair, or the K answers of a ranking; scores are read at last cells. With
    `language_coefficient` above 0, also that times the next-token loss of the best responses (their
    trained cells), which keeps the body a language model. The module is a `Transformer` with a
    scalar head, or with several: then `heads` [documents] says which of them a group is about. For
    the language term it offers `language_logits(hidden)`, for ties `tie` [1].

    `margins` [documents], where the batch has them, are read at the better document, `qualities`
    are subtracted; either is multiplied by `margin`. `offsets` [documents] are what is known of the
    scores already: the module learns what to add to them. Terms: `pairs`, `language`.

    Args:
        smoothing: share of the labels that is taken for flipped.
        ties: `drop` leaves comparisons of equal places out.
    """

    def __init__(
        self,
        centring: float = 0.0,
        language_coefficient: float = 0.0,
        *,
        margin: float = 1.0,
        smoothing: float = 0.0,
        ties: Ties = "drop",
    ):
        self.centring = centring
        self.language_coefficient = language_coefficient
        self.margin = margin
        self.smoothing = smoothing
        self.ties: Ties = ties

    def counts(self, batch: Batch) -> dict[str, float]:
        pairs = self._compared(batch)
        counts = {"pairs": float(pairs.groups)}
        if self.language_coefficient:
            counts["language"] = float(self._best_weights(batch).sum())
        return counts

    def sums(self, module: Any, micro: Batch) -> tuple[Sums, Metrics]:
        pairs = self._compared(micro)
        hidden = module(micro.tokens, micro.layout)
        scores = scores_of(module, hidden[micro.last_cells], micro)
        if "offsets" in micro.documents:
            scores = scores + micro.documents["offsets"].to(scores.dtype)
        better, worse = scores[pairs.better], scores[pairs.worse]
        margins = self._margins(micro, pairs)
        loss = self._loss(module, better, worse, margins, pairs)
        weights = 1 / pairs.together.to(loss.dtype)
        decided = weights * ~pairs.tied
        difference = (better - worse).detach()
        metrics = metric_sums(
            weights, preference_loss=self._loss(module, better, worse, margins, pairs, 0.0)
        )
        metrics |= metric_sums(
            decided,
            accuracy=(difference.sign() + 1) / 2,  # a tie is half right
            score_difference=difference,
            score_chosen=better,
            score_rejected=worse,
        )
        sums = {"pairs": (loss * weights).sum()}
        if self.language_coefficient:
            sums["language"], metrics["nll"] = self._language(module, micro, hidden)
        return sums, metrics

    def _compared(self, batch: Batch) -> Compared:
        return compared(batch, ties=self.ties != "drop")

    def _margins(self, batch: Batch, pairs: Compared) -> Tensor | None:
        margins, qualities = (batch.documents.get(name) for name in ("margins", "qualities"))
        if not self.margin or (margins is None and qualities is None):
            return None
        if margins is not None:
            return self.margin * margins[pairs.better]
        assert qualities is not None
        return self.margin * (qualities[pairs.better] - qualities[pairs.worse])

    def _loss(
        self,
        module: Any,
        better: Tensor,
        worse: Tensor,
        margins: Tensor | None,
        pairs: Compared,
        centring: float | None = None,
    ) -> Tensor:
        """[pairs]; `centring` in place of the objective's own."""
        centring = self.centring if centring is None else centring
        if self.ties == "drop":
            return bradley_terry_loss(better, worse, margins, centring, self.smoothing)
        difference = better - worse if margins is None else better - worse - margins
        tie = module.tie.to(difference.dtype)
        loss = with_ties_loss(difference, pairs.tied, tie, self.ties, self.smoothing)
        return loss + centring * (better + worse).square() if centring else loss

    def _best_weights(self, batch: Batch) -> Tensor:
        """[cells] loss weights, zero but on the documents that nothing in their group beats."""
        pairs = compared(batch, ties=True)
        best = torch.zeros(len(batch.lengths), dtype=torch.bool, device=batch.tokens.device)
        best[pairs.better] = True
        best[pairs.worse[pairs.tied]] = True
        best[pairs.worse[~pairs.tied]] = False
        return batch.streams["loss_weights"] * best[batch.document_ids]

    def _language(
        self, module: Any, micro: Batch, hidden: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        project = getattr(module, "language_logits", None)
        if project is None:
            raise ValueError("a language term needs a module that offers language_logits(hidden)")
        weights = self._best_weights(micro)
        cells = weights.nonzero().squeeze(1)
        logprobs = token_logprobs(
            project, hidden[cells], micro.targets[cells], module.config.vocab_size
        )
        nll = -(logprobs * weights[cells]).sum()
        return self.language_coefficient * nll, (nll.detach(), weights.sum())


def scores_of(module: Any, hidden: Tensor, batch: Batch) -> Tensor:
    """[documents] of the head that each is about, in float32 at least; [documents, width] given."""
    scores = module.scores(hidden).to(torch.promote_types(hidden.dtype, torch.float32))
    if scores.dim() == 1:
        return scores
    heads = batch.documents.get("heads")
    if heads is None:
        raise ValueError("several heads: the batch does not say which of them its documents are of")
    return scores.gather(1, heads[:, None]).squeeze(1)
