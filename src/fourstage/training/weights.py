"""The tensors that training changes: taken for a checkpoint, put back, and as they are measured."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fourstage.parallel.placement import local
from fourstage.training.update import Update


def tensors_of(update: Update) -> dict[str, Mapping[str, Tensor]]:
    """Weights, moments and, where there is one, the moving average, by file of a checkpoint."""
    tensors = {"model": weights_of(update.module), "optimiser": update.optimiser.state()}
    if update.average is not None:
        tensors["average"] = update.average.state(update.optimiser.names)
    return tensors


def fits(update: Update, tensors: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether the tensors of a checkpoint are of the same model."""
    there = {name: weight.shape for name, weight in weights_of(update.module).items()}
    return there == {name: weight.shape for name, weight in tensors["model"].items()}


@torch.no_grad()
def put_back(update: Update, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """The inverse of `tensors_of`."""
    for name, weight in weights_of(update.module).items():
        local(weight).copy_(local(tensors["model"][name]))
    update.optimiser.restore(tensors.get("optimiser", {}))
    if update.average is not None:
        averages = {name: local(tensor) for name, tensor in tensors["average"].items()}
        update.average.restore(update.optimiser.names, averages)


@contextmanager
def as_it_would_end(update: Update) -> Generator[None]:
    """The stage's module as it would be if training ended here, where it is measured: averaged, in
    evaluation mode."""
    average, was_training = update.average, update.module.training
    if average is not None:
        average.swap()
    try:
        with update.placement.whole(everywhere=False) as module, torch.no_grad():
            module.eval()
            yield
            module.train(was_training)
    finally:
        if average is not None:
            average.swap()


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers by name; a tensor with two names (tied) is there once.

    What is frozen is what the stage started from, which it reads again.
    """
    seen: set[int] = set()
    weights = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        is_frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if id(tensor) not in seen and not is_frozen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights
