"""Weights for tokens that another program drew than the one that trains on them.

A sampler rounds differently from the trainer, so its tokens are of a slightly other policy even
before any update. `w = pi_old(trainer) / pi(sampler)`, without gradient, makes up for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fourstage.errors import InputError
from fourstage.objectives.objective import Trained


@dataclass(frozen=True)
class Correction:
    """How far the weights may go.

    Attributes:
        method: `truncate` clamps weights to [low, high] (truncated importance sampling, Yao et al.,
            *Your Efficient RL Framework Secretly Brings You Off-Policy RL Training*, 2025, where
            high is 2); `mask` makes those outside zero (IcePop, Ling team, *Every Step Evolves*,
            2025, with 0.5 and 5).
        level: of each `token`, or of the whole `sequence` (the product over its tokens).
    """

    method: Literal["truncate", "mask"] = "truncate"
    level: Literal["token", "sequence"] = "token"
    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < 1 < self.high:
            raise InputError(
                f"a correction of [{self.low:g}, {self.high:g}] shuts out a weight of 1, that of a "
                "sampler which agrees with the trainer: write low below 1 and high above it"
            )

    def weights(
        self, old_logprobs: Tensor, rollout_logprobs: Tensor, trained: Trained
    ) -> tuple[Tensor, Tensor]:
        """[tokens] weights, and whether each was outside of the band."""
        difference = (old_logprobs - rollout_logprobs).detach()
        if self.level == "sequence":
            difference = trained.spread(trained.sums(difference))
        weights = torch.exp(difference)
        outside = (weights < self.low) | (weights > self.high)
        if self.method == "mask":
            return weights.masked_fill(outside, 0.0), outside
        return weights.clamp(self.low, self.high), outside


# Truncated importance sampling, and IcePop, as published.
TIS = Correction("truncate", "token", 0.0, 2.0)
ICEPOP = Correction("mask", "token", 0.5, 5.0)
