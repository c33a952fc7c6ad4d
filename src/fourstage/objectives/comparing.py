"""Which documents of a batch are compared: every pair of a group, by their places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fourstage.data.batch import Batch


@dataclass(frozen=True)
class Compared:
    """The comparisons of a batch.

    Attributes:
        better, worse: [pairs] documents; of a tie either.
        tied: [pairs] bool.
        together: [pairs] how many comparisons the pair's group has. Each weighs one over that: a
            prompt counts once, however many answers it has (Ouyang et al., InstructGPT, 2022,
            section 3.5).
        groups: how many groups have a comparison.
    """

    better: Tensor
    worse: Tensor
    tied: Tensor
    together: Tensor
    groups: int


def compared(batch: Batch, ties: bool = False) -> Compared:
    """All C(K, 2) comparisons of each group of K documents; ties among them only if asked for.

    `places` [documents] say who is better, 1 is best; without them documents of a group are a pair,
    the chosen one first.

    Raises:
        ValueError: without places, documents that do not come in pairs.
    """
    places = batch.documents.get("places")
    if places is None:
        pairs = pair_rows(batch)
        ones = torch.ones_like(pairs[:, 0])
        return Compared(pairs[:, 0], pairs[:, 1], ones == 0, ones, len(pairs))
    device = batch.tokens.device
    group, places = batch.documents["group"].to(device), places.to(device)
    number = torch.arange(len(group), device=device)
    first, second = torch.nonzero(
        (group[:, None] == group[None, :])
        & (
            (places[:, None] < places[None, :])
            | (ties & (places[:, None] == places[None, :]) & (number[:, None] < number[None, :]))
        ),
        as_tuple=True,
    )
    _, owner, sizes = group[first].unique(return_inverse=True, return_counts=True)
    tied = places[first] == places[second]
    return Compared(first, second, tied, sizes[owner], len(sizes))


def pair_rows(batch: Batch) -> Tensor:
    """[pairs, 2] documents: the chosen, the rejected.

    Documents of equal `group` are a pair, the chosen one first; without groups, neighbours are.

    Raises:
        ValueError: documents that do not come in pairs.
    """
    documents = len(batch.lengths)
    group = batch.documents.get("group", torch.arange(documents) // 2)
    order = torch.argsort(group, stable=True)
    if documents % 2 or (group[order].view(-1, 2).diff() != 0).any():
        raise ValueError("comparisons need two documents a group: the chosen, then the rejected")
    if (group[order].view(-1, 2)[:, 0].diff() == 0).any():
        raise ValueError("a group of more than two documents is not a pair")
    return order.view(-1, 2).to(batch.tokens.device)
