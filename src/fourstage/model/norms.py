"""Norms over the last axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage import kernels
from fourstage.kernels import elements
from fourstage.model.config import ModelConfig


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * (weight + offset)` (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.eps = eps
        self.offset = offset

    @property
    def factors(self) -> Tensor:
        """[width] what normed numbers are multiplied with."""
        return self.weight + self.offset if self.offset else self.weight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.factors
        if x.dim() == 2 and kernels.usable(x, weight):
            return elements.rms_norm(x, weight, self.eps)
        # Under autocast queries and keys come rounded: torch fuses only what is of one type.
        return F.rms_norm(x.to(weight.dtype), weight.shape, weight, self.eps)


def norm_of(config: ModelConfig) -> nn.Module:
    """A norm over the model's width: RMSNorm or LayerNorm with bias (Ba et al., 2016)."""
    if config.norm == "layer":
        return nn.LayerNorm(config.width, config.norm_eps)
    return RMSNorm(config.width, config.norm_eps, config.norm_offset)


def in_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is where that is finer."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
