"""One optimiser step on the batch of a step, however it is cut and dealt out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.objectives.objective import Objective, Surveys
from fourstage.parallel.group import Group
from fourstage.parallel.mesh import Mesh
from fourstage.parallel.placement import Placement, local
from fourstage.precision import autocast
from fourstage.training.optimiser import MovingAverage, Optimiser
from fourstage.training.optimisers.sharding import Slices
from fourstage.training.passes import Passes
from fourstage.training.settings import TrainSettings
from fourstage.training.spikes import Spike


@dataclass
class Outcome:
    """One step.

    Attributes:
        loss: sum over terms of sum / count, over the whole batch.
        gradient_norm: before clipping.
        metrics: {name: (sum, count)} over the whole batch.
        fault: what was not finite, empty where all was.
        applied: whether the weights changed; where not, weights and optimiser are as before.
        spike: what the step was judged to be, by `Update.accepts`.
    """

    loss: float
    gradient_norm: float
    metrics: dict[str, tuple[float, float]]
    fault: str = ""
    applied: bool = False
    spike: Spike | None = None


class Update:
    """Gradients of sums over global counts, clipped, applied by AdamW.

    Attributes:
        average: moving average of the weights, None when it is off.
        accepts: whether a finite step is applied, judged by its loss and gradient norm before
            anything changes; the same answer on every process.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        settings: TrainSettings,
        device: torch.device,
        group: Group,
        placement: Placement | None = None,
    ):
        self.placement = placement or Placement(module, Mesh(group))
        self.module = self.placement.module
        self.objective = objective
        self.settings = settings
        self.device = device
        self.group = group
        self.data = self.placement.mesh.data
        slices = Slices(self.placement.axes, self.placement.mesh.tensor)
        self.optimiser = Optimiser(self.module, settings, slices)
        # What is gathered and summed on the way takes all processes in step: no threads beside it.
        workers = 1 if self.placement.is_split else settings.workers
        self.passes = Passes(self.module, device, workers)
        self.accepts: Callable[[Outcome], bool] = lambda outcome: True
        self.average = (
            MovingAverage([local(p) for p in self.optimiser.parameters], settings.ema)
            if settings.ema
            else None
        )

    def __call__(self, batch: Batch, learning_rate: float) -> Outcome:
        """A step that is not finite, or not accepted, changes neither weights nor optimiser."""
        self.placement.forget_gathered()
        batch = self._surveyed(batch)
        counts = self.objective.counts(batch)
        passed = self.passes(self.objective, self._own_part(batch), counts)
        loss, sums = passed.loss, passed.metrics
        names = self.optimiser.names
        gradients = [local(gradient) for gradient in self.optimiser.gradients()]
        self.placement.sum_gradients(names, gradients, loss)
        sent = self.passes.loads.take()
        self.data.all_reduce_sum(sent)
        norm = self.placement.norm(names, gradients)
        outcome = self._read(loss, norm, sums)
        if not (math.isfinite(outcome.loss) and math.isfinite(outcome.gradient_norm)):
            outcome.fault = self._fault(gradients)
        elif self.accepts(outcome):
            outcome.applied = True
            if 0 < self.settings.clip < outcome.gradient_norm:
                torch._foreach_mul_(gradients, self.settings.clip / outcome.gradient_norm)
            self.optimiser.step(learning_rate)
            self.passes.loads.settle(sent)
            if self.average is not None:
                self.average.update()
        self.optimiser.zero_gradients()
        return outcome

    @torch.no_grad()
    def _surveyed(self, batch: Batch) -> Batch:
        """What is trained on, with the statistic of the whole step that its objective asks for."""
        objective = self.objective
        if not isinstance(objective, Surveys):
            return batch
        found: list[Tensor] = []
        for micro, weight in self._own_part(objective.surveyed(batch)):
            with autocast(self.device):
                found.append(weight * objective.survey(self.module, micro.to(self.device)))
        totals = torch.stack(found).sum(dim=0)
        numbers = self.data.sum_numbers(totals.tolist())
        return objective.informed(batch, torch.tensor(numbers, dtype=totals.dtype))

    def _own_part(self, batch: Batch) -> list[tuple[Batch, float]]:
        """This process's micro-batches, each with weight 1.

        A process without one takes the first with weight 0, so that all know the same metrics.
        Where weights are gathered for each pass, all take as many as the one that has most.
        """
        most, data = self.settings.micro_batch_tokens or batch.cells, self.data
        if data.world_size > 1:
            most = min(most, -(-batch.cells // data.world_size))
        micro_batches = batch.split(most)
        own = [(micro, 1.0) for micro in data.share(micro_batches)]
        passes = -(-len(micro_batches) // data.world_size) if self.placement.is_split else 1
        return own + [(micro_batches[0], 0.0)] * (passes - len(own))

    def _read(self, loss: Tensor, norm: Tensor, sums: dict[str, list[Any]]) -> Outcome:
        """Brings the step's numbers to the host: the one time it waits for the device."""
        names = sorted(sums)
        values = [value for name in names for value in sums[name]]
        on_device = [value for value in values if isinstance(value, Tensor)]
        read = torch.stack([value.float() for value in (loss, norm, *on_device)]).tolist()
        found = iter(read[2:])
        numbers = [next(found) if isinstance(value, Tensor) else value for value in values]
        numbers = self.data.sum_numbers(numbers)
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return Outcome(read[0], read[1], dict(zip(names, pairs, strict=True)))

    def _fault(self, gradients: list[Tensor]) -> str:
        """The first thing that is not finite: a weight, a gradient, or the loss alone."""
        names, first = self.optimiser.names, self.placement.first
        weight = first(names, self.optimiser.parameters, _not_finite)
        if weight:
            return f"the weights of {weight}"
        gradient = first(names, gradients, _not_finite)
        return f"the gradient of {gradient}" if gradient else "the loss or the gradient norm"


def _not_finite(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())
