"""Learning which of two responses is better: reward modelling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import token_logprobs
from fourstage.objectives.objective import Metrics, Sums, metric_sums


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margins: Tensor | None = None, centring: float = 0.0
) -> Tensor:
    """`-log sigmoid(r_c - r_r - margin) + centring (r_c + r_r)^2`, each [pairs] -> [pairs].

    Ouyang et al. (InstructGPT, 2022), eq. 1; the margin is that of Llama 2 (Touvron et al., 2023,
    eq. 2), centring that of Eisenstein et al. (*Helping or Herding?*, 2023).
    """
    difference = chosen - rejected
    loss = -F.logsigmoid(difference if margins is None else difference - margins)
    return loss + centring * (chosen + rejected).square() if centring else loss


def pair_rows(batch: Batch) -> Tensor:
    """[pairs, 2] documents: the chosen, the rejected.

    Documents of equal `group` are a pair, the chosen one first; without groups, neighbours are.

    Raises:
        ValueError: documents that do not come in pairs.
    """
    documents = len(batch.lengths)
    group = batch.documents.get("group", torch.arange(documents) // 2)
    order = torch.argsort(group, stable=True)
    if documents % 2 or (group[order].view(-1, 2).diff() != 0).any():
        raise ValueError("comparisons need two documents a group: the chosen, then the rejected")
    if (group[order].view(-1, 2)[:, 0].diff() == 0).any():
        raise ValueError("a group of more than two documents is not a pair")
    return order.view(-1, 2).to(batch.tokens.device)


class BradleyTerry:
    """The mean of `bradley_terry_loss` over the pairs of a step, on scores at last cells.

    With `language_coefficient` above 0, also that times the next-token loss of the chosen responses
    (their trained cells), which keeps the body a language model. The module is a `Transformer` with
    a scalar head; for the language term it offers `language_logits(hidden)` too. `margins`
    [documents], where the batch has them, are read at the chosen document. Terms: `pairs`,
    `language`.
    """

    def __init__(self, centring: float = 0.0, language_coefficient: float = 0.0):
        self.centring = centring
        self.language_coefficient = language_coefficient

    def counts(self, batch: Batch) -> dict[str, float]:
        counts = {"pairs": len(batch.lengths) / 2}
        if self.language_coefficient:
            counts["language"] = float(self._chosen_weights(batch).sum())
        return counts

    def sums(self, module: Transformer, micro: Batch) -> tuple[Sums, Metrics]:
        pairs = pair_rows(micro)
        hidden = module(micro.tokens, micro.layout)
        scores = module.scores(hidden[micro.last_cells]).to(
            torch.promote_types(hidden.dtype, torch.float32)
        )
        chosen, rejected = scores[pairs].unbind(1)
        margins = micro.documents.get("margins")
        margins = None if margins is None else margins[pairs[:, 0]]
        loss = bradley_terry_loss(chosen, rejected, margins, self.centring)
        difference = (chosen - rejected).detach()
        metrics = metric_sums(
            torch.ones_like(difference),
            preference_loss=bradley_terry_loss(chosen, rejected, margins),
            accuracy=(difference.sign() + 1) / 2,  # a tie is half right
            score_difference=difference,
            score_chosen=chosen,
            score_rejected=rejected,
        )
        sums = {"pairs": loss.sum()}
        if self.language_coefficient:
            sums["language"], metrics["nll"] = self._language(module, micro, hidden)
        return sums, metrics

    def _chosen_weights(self, batch: Batch) -> Tensor:
        """[cells] loss weights, zero on the rejected documents."""
        chosen = torch.zeros(len(batch.lengths), dtype=torch.bool, device=batch.tokens.device)
        chosen[pair_rows(batch)[:, 0]] = True
        return batch.streams["loss_weights"] * chosen[batch.document_ids]

    def _language(
        self, module: Transformer, micro: Batch, hidden: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        project = getattr(module, "language_logits", None)
        if project is None:
            raise ValueError("a language term needs a module that offers language_logits(hidden)")
        weights = self._chosen_weights(micro)
        cells = weights.nonzero().squeeze(1)
        logprobs = token_logprobs(
            project, hidden[cells], micro.targets[cells], module.config.vocab_size
        )
        nll = -(logprobs * weights[cells]).sum()
        return self.language_coefficient * nll, (nll.detach(), weights.sum())
