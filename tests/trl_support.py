"""What TRL's loss functions are given in place of a trainer, and documents as they want them."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fourstage.data.batch import Batch


def surroundings() -> dict[str, Any]:
    """One process, in evaluation mode, where TRL scales nothing for gradient accumulation."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    return {
        "accelerator": accelerator,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "model": SimpleNamespace(training=False),
        "aux_loss_enabled": False,
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }


def trainer_stub(**attributes: Any) -> SimpleNamespace:
    """What TRL's loss functions read of their trainer."""
    return SimpleNamespace(**(surroundings() | attributes))


def trainer_of(kind: type, **attributes: Any) -> Any:
    """A trainer of TRL that was never set up, for losses that call others of its methods."""
    trainer = object.__new__(kind)
    vars(trainer).update(surroundings() | attributes)
    return trainer


def rectangle(values: list[Tensor]) -> Tensor:
    """Documents as [documents, time], zeros behind them."""
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)


def tails(batch: Batch, stream: Tensor) -> Tensor:
    """[documents, time] what the trained cells of each document hold."""
    sizes, mask = list(batch.lengths), batch.streams["loss_weights"] != 0
    parts = zip(stream.split(sizes), mask.split(sizes), strict=True)
    return rectangle([values[trained] for values, trained in parts])


def newest(trainer: Any) -> dict[str, float]:
    """The numbers that a loss function left in its trainer."""
    return {name: values[-1] for name, values in trainer._metrics["eval"].items()}
