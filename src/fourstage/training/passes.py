"""Forward and backward passes over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.model.experts import Loads
from fourstage.objectives.objective import Objective
from fourstage.parallel.replicas import FEWEST_CELLS, Replicas
from fourstage.precision import autocast
from fourstage.training.metrics import add_metrics

# A micro-batch and its weight: 0 where it is passed over only to keep other processes company.
Weighed = tuple[Batch, float]


@dataclass
class Passed:
    """The loss of the micro-batches passed over, detached, and their metrics."""

    loss: Tensor
    metrics: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, other: Passed) -> None:
        self.loss += other.loss
        add_metrics(self.metrics, other.metrics)


class Passes:
    """Leaves the gradients of micro-batches in a module's parameters.

    On a CPU, `workers` replicas of the module each take a part of every micro-batch, on threads of
    their own; the parts are cut by cells alone, so that the sums are the same every time.

    Attributes:
        loads: what mixtures of experts have sent where since they were last asked.
    """

    def __init__(self, module: nn.Module, device: torch.device, workers: int = 1):
        self.module = module
        self.device = device
        alone = workers == 1 or device.type != "cpu" or _draws(module)
        self.replicas = None if alone else Replicas(module, workers)
        self.loads = Loads(*(self.replicas.modules if self.replicas else [module]))

    def __call__(
        self, objective: Objective, own: Sequence[Weighed], counts: Mapping[str, float]
    ) -> Passed:
        """Passes over `own`, each term divided by its count over the whole step."""

        def work(module: nn.Module, numbered: tuple[int, Sequence[Weighed]]) -> Passed:
            return self._pass(module, objective, numbered[1], counts, numbered[0])

        if self.replicas is None:
            return work(self.module, (0, own))
        shares: list[list[Weighed]] = [[] for _ in range(self.replicas.count)]
        for micro, weight in own:
            parts = micro.deal(max(1, min(self.replicas.count, micro.cells // FEWEST_CELLS)))
            for share, part in zip(shares, parts, strict=False):
                share.append((part, weight))
        shares = [share for share in shares if share]
        try:
            first, *others = self.replicas.each(work, list(enumerate(shares)))
        except BaseException:
            self.replicas.drop_gradients()
            raise
        self.replicas.gather_gradients()
        for other in others:
            first.add(other)
        return first

    def _pass(
        self,
        module: nn.Module,
        objective: Objective,
        own: Sequence[Weighed],
        counts: Mapping[str, float],
        copy: int,
    ) -> Passed:
        passed = Passed(torch.zeros((), device=self.device))
        for micro, weight in own:
            with autocast(self.device):
                terms, metrics = objective.sums(module, micro.to(self.device))
            part = torch.zeros((), device=self.device)
            for name, value in terms.items():
                part = part + value * (weight / (counts[name] or 1.0))
            part.backward()
            self.loads.add(weight, copy)
            counted = metrics if weight else dict.fromkeys(metrics, (0.0, 0.0))
            passed.loss += part.detach()
            add_metrics(passed.metrics, counted)
        return passed


def _draws(module: nn.Module) -> bool:
    """Whether a pass draws random numbers: threads would draw theirs in any order."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())
