"""The loss of a critic."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """`0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)`, each [tokens].

    As in lm-human-preferences and PPO's own code (Huang et al., *The 37 Implementation Details of
    PPO*, 2022, item 9). `clip` None is the plain squared error. Also returns whether the
    clipped term was the larger.
    """
    free = (values - returns).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    held = values.clamp(old_values - clip, old_values + clip)
    clipped = (held - returns).square()
    return torch.maximum(free, clipped) / 2, clipped > free
