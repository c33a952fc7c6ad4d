"""Several projections of one input as one product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fused(x: Tensor, projections: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """What each of `projections` makes of `x` [..., in]: for each [..., out].

    One product for all where they are plain: small matrices run well below the speed of larger
    ones. A projection that is more than its weight and bias (an adapter, a quantised or sharded
    weight, a hook) is called itself, and so are those beside it.
    """
    together = _product(x, projections)
    if together is None:
        return tuple(projection(x) for projection in projections)
    return together.split([p.out_features for p in projections], dim=-1)


def joined(x: Tensor, projections: Sequence[nn.Linear]) -> Tensor:
    """As `fused`, side by side: [..., the sum of all out]."""
    together = _product(x, projections)
    if together is None:
        return torch.cat([projection(x) for projection in projections], dim=-1)
    return together


def _product(x: Tensor, projections: Sequence[nn.Linear]) -> Tensor | None:
    biases: list[Tensor] = [p.bias for p in projections if getattr(p, "bias", None) is not None]
    if len(biases) not in (0, len(projections)) or not all(map(_is_plain, projections)):
        return None
    weight = torch.cat([projection.weight for projection in projections])
    return F.linear(x, weight, torch.cat(biases) if biases else None)


def _is_plain(projection: nn.Module) -> bool:
    return (
        type(projection) is nn.Linear
        # Sharded (DTensor) and quantised weights are subclasses.
        and type(projection.weight) in (nn.Parameter, Tensor)
        and not projection._forward_hooks
        and not projection._forward_pre_hooks
        and not projection._backward_hooks
    )
