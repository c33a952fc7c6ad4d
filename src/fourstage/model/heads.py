"""Several scalar heads on one body, and the one head that is their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fourstage.model.initialisation import initial_std
from fourstage.model.transformer import Transformer
from fourstage.randomness import generator


@dataclass(frozen=True)
class Heads:
    """What several heads of a reward model are called, count, and measure with.

    Attributes:
        weights: name -> how much of the reward a deviation of the head is worth.
        rows: [heads, width].
        means, stds: raw score of reference responses, and deviation over samples, of each head.
    """

    weights: Mapping[str, float]
    rows: Tensor
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., width] -> normalised scores [..., heads], float32."""
        raw = hidden.float() @ self.rows.to(hidden.device).T
        return (raw - raw.new_tensor(self.means)) / raw.new_tensor(self.stds)

    def folded(self) -> Tensor:
        """[1, width] of the one head that gives `sum_h weight_h score_h`, but for a constant.

        A sum of linear heads is a linear head: what reads one score needs to know of no others.
        """
        shares = torch.tensor(
            [weight / std for weight, std in zip(self.weights.values(), self.stds, strict=True)],
            dtype=self.rows.dtype,
        )
        return shares[None] @ self.rows


def give_heads(model: Transformer, names: tuple[str, ...], seed: int) -> None:
    """Puts a head for each name in the place of the one, in the order given; drawn by its name."""
    width, device = model.config.width, model.score.weight.device
    model.score = nn.Linear(width, len(names), bias=False, device=device)
    std = initial_std("score.weight", model.score.weight.shape, model.config)
    with torch.no_grad():
        for row, name in zip(model.score.weight, names, strict=True):
            drawn = torch.randn(width, generator=generator(seed, "weights", "score.weight", name))
            row.copy_(drawn * std)


def fold_heads(model: Transformer, heads: Heads) -> None:
    """Puts the one head that is the weighted sum in the place of the several."""
    device = model.score.weight.device
    model.score = nn.Linear(model.config.width, 1, bias=False, device=device)
    with torch.no_grad():
        model.score.weight.copy_(heads.folded())
