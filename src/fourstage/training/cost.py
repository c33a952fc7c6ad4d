"""What training costs in floating-point operations, and how it is made repeatable on a GPU."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fourstage.adapters.adapting import trained_share
from fourstage.model.transformer import Transformer


class TrainingCost:
    """Operations of a training step: forward and twice that backwards, of every transformer in it.

    A frozen weight has no gradient, which is half of what the backward pass makes. A module without
    a transformer is charged 6 operations a weight and token (Kaplan et al., 2020).
    """

    def __init__(self, module: nn.Module):
        self._transformers = [part for part in module.modules() if isinstance(part, Transformer)]
        self._shares = [trained_share(model) for model in self._transformers]
        self._weights = sum(parameter.numel() for parameter in module.parameters())

    def __call__(self, lengths: Sequence[int]) -> float:
        """Operations for documents of `lengths` cells."""
        cells = sum(lengths)
        if not self._transformers:
            return 6.0 * self._weights * cells
        context = sum(n * (n + 1) for n in lengths) / (2 * cells)
        return cells * sum(
            (2 + share) * m.config.forward_flops_per_token(context, head=m.head == "language")
            for m, share in zip(self._transformers, self._shares, strict=True)
        )


@contextmanager
def repeatable(device: torch.device) -> Generator[None]:
    """On CUDA, algorithms that give the same bits every time; the CPU's do already."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory finds reads of it, and would cost a pass over every activation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # ty: ignore
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
