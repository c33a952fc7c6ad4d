"""Held-out text through a model: log-probabilities, greedy hits and reward scores, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fourstage.data.batch import Batch, Example
from fourstage.memory import in_halves
from fourstage.model.config import ModelConfig
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import token_logprobs
from fourstage.precision import autocast

# Cells of one forward pass: enough for full matrices, little enough for a CPU's cache.
_CELLS_CPU, _CELLS_GPU = 4096, 65536


class Scorer(Protocol):
    """What scores rows: a `Transformer` with a scalar head, or an `Ensemble` of them."""

    config: ModelConfig
    reward_mean: float
    reward_std: float

    def __call__(self, tokens: Tensor, layout: Layout) -> Tensor: ...

    def scores(self, hidden: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


def device_of(model: torch.nn.Module | Scorer) -> torch.device:
    return next(model.parameters()).device


def alike(lengths: Sequence[int], device: torch.device) -> Iterator[list[int]]:
    """Indices in portions of like length, each to be read in one forward pass."""
    most = _CELLS_CPU if device.type == "cpu" else _CELLS_GPU
    portion: list[int] = []
    cells = 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if portion and cells + lengths[index] > most:
            yield portion
            portion, cells = [], 0
        portion.append(index)
        cells += lengths[index]
    if portion:
        yield portion


def trained_logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """[cells] log-probability of each trained cell's target, zero on the others; on the CPU.

    The logits are divided by `temperature`. What a document gets does not depend on its neighbours
    (within float32 rounding).
    """

    def number(hidden: Tensor, targets: Tensor) -> Tensor:
        vocab_size = model.config.vocab_size
        return token_logprobs(
            model.logits, hidden, targets, vocab_size, temperature, model.plain_head
        )

    return _at_trained_cells(model, batch, number)


def trained_values(critic: Transformer, batch: Batch) -> Tensor:
    """[cells] the critic's value at each trained cell, zero on the others; on the CPU."""
    return _at_trained_cells(critic, batch, lambda hidden, targets: critic.scores(hidden))


@torch.no_grad()
def _at_trained_cells(
    model: Transformer, batch: Batch, number: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """`number(hidden, targets)` at each trained cell, a portion of documents at a time."""
    found = torch.zeros(batch.cells)
    device = device_of(model)
    starts = np.cumsum([0, *batch.lengths])

    def work(rows: list[int]) -> None:
        part = batch.select(rows).to(device)
        cells = part.streams["loss_weights"].nonzero().squeeze(1)
        with autocast(device):
            values = number(model(part.tokens, part.layout)[cells], part.targets[cells])
        found[_cells_of(rows, starts)[cells.cpu()]] = values.float().cpu()

    in_halves(alike(batch.lengths, device), work)
    return found


def _cells_of(rows: Sequence[int], starts: np.ndarray) -> Tensor:
    """[cells] where the cells of some documents stand in the whole batch."""
    return torch.from_numpy(np.concatenate([np.arange(starts[i], starts[i + 1]) for i in rows]))


@torch.no_grad()
def greedy_hits(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """[cells] log-probability of each target in nats, and whether it is the most likely token."""
    logprobs, hits = torch.zeros(batch.cells), torch.zeros(batch.cells, dtype=torch.bool)
    device = device_of(model)
    starts = np.cumsum([0, *batch.lengths])
    size = max(64, 2**19 // model.config.vocab_size)

    def work(rows: list[int]) -> None:
        part = batch.select(rows).to(device)
        with autocast(device):
            hidden = model(part.tokens, part.layout)
        places = _cells_of(rows, starts)
        for here, states, targets in zip(
            places.split(size), hidden.split(size), part.targets.split(size), strict=True
        ):
            with autocast(device):
                logits = model.logits(states).float()
            chosen = logits.gather(-1, targets[:, None])[:, 0]
            logprobs[here] = (chosen - logits.logsumexp(dim=-1)).cpu()
            hits[here] = (logits.argmax(dim=-1) == targets).cpu()

    in_halves(alike(batch.lengths, device), work)
    return logprobs, hits


@torch.no_grad()
def raw_scores(model: Scorer, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """[rows] raw score of each row of tokens at its last cell, float64.

    [rows, heads] of a model whose head has several. A row's score does not depend on what else is
    scored (within float32 rounding). A row longer than the context is read from its end.
    """
    device = device_of(model)
    rows = [row[-model.config.context :] for row in rows]
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)

    def work(portion: list[int]) -> None:
        batch = Batch.rows([Example(np.asarray(rows[i])) for i in portion]).to(device)
        with autocast(device):
            hidden = model(batch.tokens, batch.layout)[batch.last_cells]
            values = model.scores(hidden).double().cpu().numpy()
        for index, value in zip(portion, values, strict=True):
            found[index] = value

    in_halves(alike([len(row) for row in rows], device), work)
    return np.array(found, np.float64)


def scores(model: Scorer, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """[rows] `(raw score - reward_mean) / reward_std`, as kept beside the model's weights."""
    return (raw_scores(model, rows) - model.reward_mean) / model.reward_std
