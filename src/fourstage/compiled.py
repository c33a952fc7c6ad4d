"""Compiled blocks and fused functions: torch.compile, applied to a model from outside.

One graph serves all layers (regional compilation), and its number of cells is open, so that
batches of other documents do not compile again. Blocks keep their names, weights and hooks.
What has no gradient (rollouts, scores, measurements) is computed as written: its bits do not depend
on whether the process has come to its first step, in which a trainer compiles.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from fourstage.files import user_cache
from fourstage.model.attention import Attention
from fourstage.model.layout import Layout
from fourstage.model.mlp import MLP
from fourstage.model.packed import keep_buckets_out_of_graphs, tiles_of
from fourstage.model.transformer import Block, Transformer

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_fuses: str | None = None


def why_not(module: nn.Module, device: torch.device) -> str:
    """Why the blocks of a module cannot be compiled, in a clause; empty where they can."""
    if not any(True for _ in _compilable(module)):
        return "its blocks are shared by processes or are mixtures of experts"
    compilers = (os.environ.get("CXX"), "g++", "clang++")
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        return "no C++ compiler was found (g++, clang++)"
    return ""


def compile_blocks(module: nn.Module, backend: str = "inductor") -> None:
    """Has the blocks of every transformer in a module computed by compiled code, in place.

    What is compiled is kept in the user's cache for the next process.
    """
    global _fuses
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "inductor"))
    keep_buckets_out_of_graphs()
    _fuses = backend
    run = torch.compile(_forward, backend=backend)
    for block in _compilable(module):
        block.forward = _Compiled(block, run)


def restore_blocks(module: nn.Module) -> None:
    """Has them computed as written again."""
    global _fuses
    _fuses = None
    for block in _compilable(module):
        block.__dict__.pop("forward", None)


def fusible(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function of tensors that is one kernel while blocks are compiled, else as written.

    Of its tensors, the first axis may differ from call to call.
    """

    @functools.cache
    def compiled(backend: str) -> Callable[Parameters, Result]:
        return torch.compile(function, backend=backend)

    @functools.wraps(function)
    def call(*given: Parameters.args, **named: Parameters.kwargs) -> Result:
        if _fuses is None or not torch.is_grad_enabled():
            return function(*given, **named)
        _open_first_axis(*(each for each in given if isinstance(each, Tensor)))
        return compiled(_fuses)(*given, **named)

    return call


@contextlib.contextmanager
def as_written() -> Generator[None]:
    """Nothing within is run as compiled: compiled code does not call hooks added to its parts."""
    stance = torch.compiler.set_stance if "torch._dynamo" in sys.modules else None
    with stance("force_eager") if stance else contextlib.nullcontext():
        yield


class _Compiled:
    """The forward of one block; the code is that of all blocks of a shape."""

    def __init__(self, block: Block, run: Callable[..., Tensor]):
        self.block, self.run = block, run
        attention = block.self_attn
        self.in_tiles = bool(attention.config.attention_softcap) or attention.slopes is not None

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        layout: Layout,
        keep: tuple | None,
        routing: list | None = None,
    ) -> Tensor:
        if keep is not None or not torch.is_grad_enabled():
            return _forward(self.block, x, cos, sin, layout, keep)
        window = self.block.self_attn.window
        if self.in_tiles and x.device.type == "cuda" and window not in layout.tiles:
            layout.tiles[window] = tiles_of(layout, window)
        _open_first_axis(x, cos, sin, layout.starts, layout.document_ids)
        return self.run(self.block, x, cos, sin, layout, None)


def _forward(block: Block, *given: Any) -> Tensor:
    return type(block).forward(block, *given)


def _open_first_axis(*tensors: Tensor) -> None:
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _compilable(module: nn.Module) -> Iterator[Block]:
    """Blocks without sums over processes or choices of experts inside."""
    for model in (part for part in module.modules() if isinstance(part, Transformer)):
        for block in model.model.layers:
            assert isinstance(block, Block)
            if type(block.self_attn) is Attention and type(block.mlp) is MLP:
                yield block
