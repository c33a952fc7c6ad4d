"""Where a step first stopped being finite: the layer, and the documents that bring it about."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.compiled import as_written
from fourstage.data.batch import Batch
from fourstage.objectives.objective import Objective, Surveys, unsurveyed
from fourstage.precision import autocast

# Documents named at most; the search for each costs the logarithm of their number in passes.
_NAMED = 8


@dataclass(frozen=True)
class Diagnosis:
    """What the forward pass shows of a step that was not finite.

    Attributes:
        layer: the first module whose output is not finite, "" where the forward pass is finite.
        documents: numbers, in the batch, of documents whose own loss is not finite.
    """

    layer: str = ""
    documents: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.layer and not self.documents:
            return "the forward pass is finite, the backward pass is not"
        where = f"first in the output of {self.layer}" if self.layer else "in the loss alone"
        if not self.documents:
            return where
        numbers = ", ".join(map(str, self.documents[:_NAMED]))
        more = " and more" if len(self.documents) > _NAMED else ""
        plural = "s" if len(self.documents) > 1 else ""
        return f"{where}; document{plural} {numbers}{more} of the batch"


@torch.no_grad()
def diagnose(
    module: nn.Module,
    objective: Objective,
    batch: Batch,
    device: torch.device,
    micro_batch_tokens: int | None = None,
) -> Diagnosis:
    """Runs the forward pass of a step again, piece by piece, until it is not finite.

    It is the same on every process, whatever part of the batch a process has trained on.
    """

    def is_finite(part: Batch) -> bool:
        with autocast(device):
            terms, _ = objective.sums(module, part.to(device))
        return all(math.isfinite(float(value)) for value in terms.values())

    def surveys_finite(part: Batch) -> bool:
        assert isinstance(objective, Surveys)
        with autocast(device):
            return bool(objective.survey(module, part.to(device)).isfinite().all())

    numbers = torch.arange(len(batch.lengths))
    numbered = replace(batch, documents={**batch.documents, "number": numbers})
    looked_at = [(unsurveyed(objective, numbered), is_finite)]
    if isinstance(objective, Surveys):
        looked_at.insert(0, (objective.surveyed(numbered), surveys_finite))
    for part, check in looked_at:
        for micro in part.split(micro_batch_tokens):
            with as_written(), _first_not_finite_output(module) as found:
                if check(micro) and not found:
                    continue
            return Diagnosis(found[0] if found else "", _offenders(micro, check))
    return Diagnosis()


def _offenders(micro: Batch, is_finite: Callable[[Batch], bool]) -> list[int]:
    """Numbers of the first documents whose own loss is not finite, found by halving."""
    found: list[int] = []
    waiting = [micro.groups()]
    while waiting and len(found) <= _NAMED:
        groups = waiting.pop(0)
        part = micro.select(index for group in groups for index in group)
        if is_finite(part):
            continue
        if len(groups) == 1:
            found.append(int(part.documents["number"][0]))
        else:
            middle = len(groups) // 2
            waiting = [groups[:middle], groups[middle:], *waiting]
    return found


@contextlib.contextmanager
def _first_not_finite_output(module: nn.Module) -> Generator[list[str]]:
    """Gathers names of modules whose output is not finite, the innermost and first in front."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return hook

    hooks = [
        part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
