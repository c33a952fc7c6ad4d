"""What an objective answers, and the small pieces that every objective uses."""

from __future__ import annotations

from typing import Any, Protocol

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


def metric_sums(weights: Tensor, **values: Tensor) -> Metrics:
    """Each of `values` [n], weighted, as (sum, count)."""
    count = weights.sum()
    return {name: ((value.detach() * weights).sum(), count) for name, value in values.items()}
