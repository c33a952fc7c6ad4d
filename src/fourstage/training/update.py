"""One optimiser step on the batch of a step, however it is cut and dealt out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.devices import autocast
from fourstage.objectives.objective import Objective
from fourstage.parallel.group import Group
from fourstage.training.guards import first_not_finite
from fourstage.training.metrics import add_metrics
from fourstage.training.optimiser import MovingAverage, Optimiser
from fourstage.training.settings import TrainSettings


@dataclass
class Outcome:
    """One step.

    Attributes:
        loss: sum over terms of sum / count, over the whole batch.
        gradient_norm: before clipping.
        metrics: {name: (sum, count)} over the whole batch.
        fault: what was not finite, empty where all was; the weights then are as before.
    """

    loss: float
    gradient_norm: float
    metrics: dict[str, tuple[float, float]]
    fault: str = ""


class Update:
    """Gradients of sums over global counts, clipped, applied by AdamW.

    Attributes:
        average: moving average of the weights, None when it is off.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        settings: TrainSettings,
        device: torch.device,
        group: Group,
    ):
        self.module = module
        self.objective = objective
        self.settings = settings
        self.device = device
        self.group = group
        self.optimiser = Optimiser(module, settings)
        self.average = (
            MovingAverage(self.optimiser.parameters, settings.ema) if settings.ema else None
        )

    def __call__(self, batch: Batch, learning_rate: float) -> Outcome:
        """A step that is not finite changes neither weights nor optimiser."""
        counts = self.objective.counts(batch)
        loss = torch.zeros((), device=self.device)
        sums: dict[str, list[Any]] = {}
        for micro, weight in self._own_part(batch):
            with autocast(self.device):
                terms, metrics = self.objective.sums(self.module, micro.to(self.device))
            part = torch.zeros((), device=self.device)
            for name, value in terms.items():
                part = part + value * (weight / (counts[name] or 1.0))
            part.backward()
            loss += part.detach()
            add_metrics(sums, metrics if weight else dict.fromkeys(metrics, (0.0, 0.0)))
        gradients = self.optimiser.gradients()
        self.group.all_reduce_sum([*gradients, loss])
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        outcome = self._read(loss, norm, sums)
        if math.isfinite(outcome.loss) and math.isfinite(outcome.gradient_norm):
            if 0 < self.settings.clip < outcome.gradient_norm:
                torch._foreach_mul_(gradients, self.settings.clip / outcome.gradient_norm)
            self.optimiser.step(learning_rate)
            if self.average is not None:
                self.average.update()
        else:
            outcome.fault = self._fault(gradients)
        self.optimiser.zero_gradients()
        return outcome

    def _own_part(self, batch: Batch) -> list[tuple[Batch, float]]:
        """This process's micro-batches, each with weight 1.

        A process without one takes the first with weight 0, so that all know the same metrics.
        """
        most = self.settings.micro_batch_tokens or batch.cells
        if self.group.world_size > 1:
            most = min(most, -(-batch.cells // self.group.world_size))
        micro_batches = batch.split(most)
        own = [(micro, 1.0) for micro in self.group.share(micro_batches)]
        return own or [(micro_batches[0], 0.0)]

    def _read(self, loss: Tensor, norm: Tensor, sums: dict[str, list[Any]]) -> Outcome:
        """Brings the step's numbers to the host: the one time it waits for the device."""
        names = sorted(sums)
        values = [value for name in names for value in sums[name]]
        on_device = [value for value in values if isinstance(value, Tensor)]
        read = torch.stack([value.float() for value in (loss, norm, *on_device)]).tolist()
        found = iter(read[2:])
        numbers = [next(found) if isinstance(value, Tensor) else value for value in values]
        numbers = self.group.sum_numbers(numbers)
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return Outcome(read[0], read[1], dict(zip(names, pairs, strict=True)))

    def _fault(self, gradients: list[Tensor]) -> str:
        """The first thing that is not finite: a weight, a gradient, or the loss alone."""
        names = self.optimiser.names
        weight = first_not_finite(names, self.optimiser.parameters)
        if weight:
            return f"the weights of {weight}"
        gradient = first_not_finite(names, gradients)
        return f"the gradient of {gradient}" if gradient else "the loss or the gradient norm"
