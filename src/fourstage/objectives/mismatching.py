"""Prompts with the responses of others, from which KTO reads how far the policy has moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.errors import InputError


@dataclass(frozen=True)
class _Half:
    """Tokens, targets and weights of a prompt's or a response's cells."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor


def with_mismatches(batch: Batch, most_cells: int | None = None) -> Batch:
    """The labelled responses, and behind them each prompt with the response to another one.

    That of the next document in the batch with another prompt, where both fit. (Documents of one
    prompt are left out: their responses are no strangers to it.) Done before the reference is
    asked, which has to know these documents too.

    Args:
        batch: documents with `labels`, and no stream but `loss_weights`.
        most_cells: of a document; None is any.

    Returns:
        The batch, with documents of label 0 behind those that it had; other numbers of documents
        are copied from those whose prompt it is.

    Raises:
        InputError: no prompt can be given another's response.
        ValueError: a document without a response, or streams that strangers would lack.
    """
    if set(batch.streams) != {"loss_weights"}:
        raise ValueError("mismatched documents are made before any stream but loss_weights")
    halves = [_halves(batch.select([i])) for i in range(len(batch.lengths))]
    made, owners = [], []
    for index, (prompt, _) in enumerate(halves):
        found = _stranger(halves, index, most_cells)
        if found is not None:
            made.append((prompt, found))
            owners.append(index)
    if not made:
        raise InputError(
            "KTO compares with responses to other prompts, and no prompt of the batch can be given "
            "another's: mix prompts within a batch, or make it larger"
        )
    return _joined(batch, made, owners)


def _halves(document: Batch) -> tuple[_Half, _Half]:
    """What is before the first trained token, and the rest.

    The prompt keeps the cell that predicts the response's first token, whose target and weight are
    the response's.
    """
    weights = document.streams["loss_weights"]
    trained = weights.nonzero()
    if not len(trained):
        raise ValueError("a document without a trained token has no response")
    first = int(trained[0])
    tokens, targets = document.tokens, document.targets
    return (
        _Half(tokens[: first + 1], targets[:first], weights[:first]),
        _Half(tokens[first + 1 :], targets[first:], weights[first:]),
    )


def _stranger(
    halves: list[tuple[_Half, _Half]], index: int, most_cells: int | None
) -> _Half | None:
    """The response of the next document with another prompt that fits behind this one's."""
    prompt = halves[index][0].tokens
    for step in range(1, len(halves)):
        other, response = halves[(index + step) % len(halves)]
        fits = most_cells is None or len(prompt) + len(response.tokens) <= most_cells
        if fits and not torch.equal(other.tokens, prompt):
            return response
    return None


def _joined(batch: Batch, made: list[tuple[_Half, _Half]], owners: list[int]) -> Batch:
    """The batch with the documents that were made behind its own."""

    def all_of(name: str, own: Tensor) -> Tensor:
        return torch.cat([own, *(getattr(half, name) for pair in made for half in pair)])

    numbers = {name: torch.cat([rows, rows[owners]]) for name, rows in batch.documents.items()}
    numbers["labels"][len(batch.lengths) :] = 0
    if "group" in numbers:
        # Each of its own, so that it may stand in any micro-batch.
        numbers["group"][len(batch.lengths) :] = -1 - torch.arange(len(made))
    lengths = tuple(len(prompt.tokens) + len(response.tokens) for prompt, response in made)
    return Batch(
        all_of("tokens", batch.tokens),
        (*batch.lengths, *lengths),
        all_of("targets", batch.targets),
        {"loss_weights": all_of("weights", batch.streams["loss_weights"])},
        numbers,
    )
