"""What an objective answers, and the small pieces that every objective uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fourstage.data.batch import Batch

Sums = dict[str, Tensor]
Metrics = dict[str, tuple[Tensor, Tensor]]


class Objective(Protocol):
    """Sums and counts; the trainer alone divides, `loss = sum_k sums[k] / counts[k]`.

    Counts are of the whole step, over micro-batches and ranks, so the update does not depend on how
    the step was cut. A mean over each micro-batch, averaged, would weigh tokens unequally.
    """

    def counts(self, batch: Batch) -> dict[str, float]:
        """The denominator of each term over `batch`; from data alone, before any forward."""
        ...

    def sums(self, module: Any, micro: Batch) -> tuple[Sums, Metrics]:
        """Each term summed over `micro`, differentiable; metrics as (sum, count).

        Metrics are tensors without gradient: reading them is left to the end of the step.
        """
        ...


@runtime_checkable
class Surveys(Protocol):
    """An objective that needs a statistic of the whole step before any of its micro-batches.

    Before the counts are taken and the batch is cut, the trainer adds up `survey` over the
    micro-batches (and ranks) of `surveyed(batch)`, without gradient, and goes on with
    `informed(batch, totals)`. So the statistic is the same however the step is cut.
    """

    def surveyed(self, batch: Batch) -> Batch:
        """The documents that the statistic is read from."""
        ...

    def survey(self, module: Any, micro: Batch) -> Tensor:
        """[k] sums over `micro`, which add up over micro-batches and ranks."""
        ...

    def informed(self, batch: Batch, totals: Tensor | None) -> Batch:
        """The documents that are trained on, with what `totals` say; None where nothing is known
        yet, and memory, masks or finiteness are looked at alone."""
        ...


def unsurveyed(objective: Any, batch: Batch) -> Batch:
    """What `objective` trains on of a batch, before its statistic is known."""
    return objective.informed(batch, None) if isinstance(objective, Surveys) else batch


@torch.no_grad()
def with_survey(objective: Any, module: Any, batch: Batch, max_tokens: int | None = None) -> Batch:
    """The batch that `objective` trains on, surveyed in one process; others' batches as they are.

    Raises:
        InputError: from the objective, where the batch lacks what the statistic is read from.
    """
    if not isinstance(objective, Surveys):
        return batch
    parts = objective.surveyed(batch).split(max_tokens)
    return objective.informed(batch, sum(objective.survey(module, part) for part in parts))


@dataclass(frozen=True)
class Trained:
    """Which document each trained token of a micro-batch is of.

    Attributes:
        owners: [tokens] index of the document.
        tokens: [documents] trained tokens of each.
    """

    owners: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, micro: Batch, cells: Tensor) -> Trained:
        owners = micro.document_ids[cells]
        return cls(owners, torch.bincount(owners, minlength=len(micro.lengths)))

    def sums(self, values: Tensor) -> Tensor:
        """[tokens] -> [documents]."""
        return values.new_zeros(len(self.tokens)).index_add(0, self.owners, values)

    def means(self, values: Tensor) -> Tensor:
        """[tokens] -> [documents]; 0 where a document has no trained token."""
        return self.sums(values) / self.tokens.clamp(min=1)

    def spread(self, values: Tensor) -> Tensor:
        """[documents] -> [tokens]: each document's number on each of its tokens."""
        return values[self.owners]

    def shared(self, values: Tensor) -> Tensor:
        """[documents] -> [tokens]: each token's equal share, which sum to the document's number."""
        return (values / self.tokens.clamp(min=1))[self.owners]


def trained_cells(batch: Batch) -> Tensor:
    """[trained] indices of the cells whose loss weight is not zero."""
    return batch.streams["loss_weights"].nonzero().squeeze(1)


def taken(values: Tensor, cells: Tensor) -> Tensor:
    """`values[cells]` for rising, different `cells`: without a copy where these are all of them."""
    return values if len(cells) == len(values) else values[cells]


def document_sums(values: Tensor, batch: Batch) -> Tensor:
    """[cells] -> [documents], the sum over each document's cells."""
    zeros = values.new_zeros(len(batch.lengths))
    return zeros.index_add(0, batch.document_ids, values)


def tokens_of_documents(batch: Batch) -> Tensor:
    """[documents] trained tokens of each document."""
    return document_sums((batch.streams["loss_weights"] != 0).float(), batch)


def metric_sums(weights: Tensor, **values: Tensor) -> Metrics:
    """Each of `values` [n], weighted, as (sum, count)."""
    count = weights.sum()
    return {name: ((value.detach() * weights).sum(), count) for name, value in values.items()}
