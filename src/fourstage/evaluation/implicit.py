"""What a policy itself prefers on held-out comparisons: the loss it trains on, and its order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fourstage.data.batch import Batch
from fourstage.evaluation.scoring import device_of, trained_logprobs
from fourstage.model.transformer import Transformer
from fourstage.objectives.comparing import pair_rows
from fourstage.objectives.objective import document_sums, tokens_of_documents, with_survey
from fourstage.precision import autocast

# Cells of one forward pass.
_CELLS = 4096


@torch.no_grad()
def objective_on(module: nn.Module, objective: Any, batch: Batch) -> dict[str, float]:
    """`validation_loss`, the objective over the whole batch, and its metrics, without gradient."""
    device = device_of(module)
    with autocast(device):
        batch = with_survey(objective, module, batch.to(device), _CELLS)
        counts = objective.counts(batch)
        loss, found = 0.0, {}
        for micro in batch.split(_CELLS):
            terms, metrics = objective.sums(module, micro)
            loss += sum(float(term) / (counts[name] or 1.0) for name, term in terms.items())
            for name, (total, count) in metrics.items():
                before = found.get(name, (0.0, 0.0))
                found[name] = (before[0] + float(total), before[1] + float(count))
    means = {f"validation_{name}": total / (count or 1.0) for name, (total, count) in found.items()}
    return {"validation_loss": loss} | means


def pairs_in_order(
    policy: Transformer, reference: Transformer | None, batch: Batch, by_token: bool = False
) -> np.ndarray:
    """[pairs] 1 where the policy gives the chosen response the larger log-ratio to the reference, 0
    where not, 0.5 on equal ones.

    Without a reference log-probabilities themselves are compared; with `by_token` a token's mean.
    """
    found = trained_logprobs(policy, batch).double()
    if reference is not None:
        found = found - trained_logprobs(reference, batch).double()
    worth = document_sums(found, batch)
    if by_token:
        worth = worth / tokens_of_documents(batch)
    chosen, rejected = worth[pair_rows(batch)].unbind(1)
    return (((chosen - rejected).sign() + 1) / 2).numpy()
