"""Fused kernels of a training step on a CPU, in C, beside torch's own operations.

They hold for contiguous float32 tensors on a CPU; `usable` says whether they may be taken, and
whoever calls them has another way where they may not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from fourstage.kernels import library

if TYPE_CHECKING:
    from torch import Tensor

_wanted = True
# Of a thread alone: another one that draws responses meanwhile computes as it always does.
_without = ContextVar("without", default=False)


def use(wanted: bool) -> None:
    """Switches the kernels on or off for this process (`compute.kernels`)."""
    global _wanted
    _wanted = wanted


@contextlib.contextmanager
def without() -> Generator[None]:
    """No kernels inside, in this thread: every tensor between two operations can be looked at."""
    before = _without.set(True)
    try:
        yield
    finally:
        _without.reset(before)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these tensors, and are wanted."""
    import torch

    # Sharded and quantised tensors are subclasses.
    plain = (torch.Tensor, torch.nn.Parameter)
    return (
        _wanted
        and not _without.get()
        and all(type(t) in plain and t.dtype is torch.float32 for t in tensors)
        and all(t.device.type == "cpu" for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and library.load() is not None
    )
