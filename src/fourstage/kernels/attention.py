"""Causal attention of documents laid back to back, as one operation with its gradient.

Norms on queries and keys (optional), rotary positions, softmax and sums are computed head by head
from the joint product of queries, keys and values: nothing is padded, masked or rearranged in
memory, and no [time, time] scores are kept (Dao et al., *FlashAttention*, 2022).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fourstage.kernels import library
from fourstage.kernels.dealing import deal, parts

MOST_HEAD = 512


@dataclass(frozen=True)
class Heads:
    """How a joint product [cells, (heads + 2 kv_heads) head_width] is read.

    Attributes:
        window: cells that a query sees, its own included; 0 is all before it.
        scale: factor on scores.
        epsilon: of the norms on queries and keys.
    """

    heads: int
    kv_heads: int
    head_width: int
    scale: float
    window: int = 0
    epsilon: float = 0.0


def attend(
    joint: Tensor,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor,
    heads: Heads,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
) -> Tensor:
    """[cells, (heads + 2 kv_heads) head_width] -> [cells, heads head_width].

    Args:
        joint: queries, keys and values of each cell side by side, contiguous float32.
        cos, sin: [cells, turned / 2] at each cell's position, of the pairs (i, i + turned / 2)
            that are turned.
        starts: [documents + 1] int64, the first cell of each document, and the number of cells.
        query_norm, key_norm: [head_width] weights of RMSNorm before the turn, both or neither.
    """
    angles = (cos.contiguous(), sin.contiguous())
    return _Attend.apply(heads, joint.contiguous(), *angles, starts, query_norm, key_norm)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Heads, joint: Tensor, *others: Any) -> Tensor:
        cells = joint.shape[0]
        output = joint.new_empty(cells, heads.heads * heads.head_width)
        logsumexp = joint.new_empty(cells, heads.heads)
        told = _Told.of(heads, joint, *others)
        run = _function("attention_forward")
        failed = deal(
            parts(heads.kv_heads, joint.numel()),
            lambda _, first, end: run(
                ctypes.byref(told), first, end, output.data_ptr(), logsumexp.data_ptr()
            ),
        )
        _check(failed)
        ctx.heads = heads
        ctx.save_for_backward(output, logsumexp, joint, *others)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor):
        output, logsumexp, joint, *others = ctx.saved_tensors
        heads: Heads = ctx.heads
        d_output = d_output.contiguous()
        d_joint = torch.empty_like(joint)
        d_norms = None
        if others[-1] is not None:
            d_norms = joint.new_zeros(heads.heads + heads.kv_heads, heads.head_width)
        told = _Told.of(heads, joint, *others)
        wanted = _Wanted.of(d_joint, d_norms, heads)
        run = _function("attention_backward")
        failed = deal(
            parts(heads.kv_heads, joint.numel()),
            lambda _, first, end: run(
                ctypes.byref(told),
                first,
                end,
                output.data_ptr(),
                logsumexp.data_ptr(),
                d_output.data_ptr(),
                ctypes.byref(wanted),
            ),
        )
        _check(failed)
        if d_norms is None:
            return None, d_joint, None, None, None, None, None
        d_query, d_key = d_norms.split([heads.heads, heads.kv_heads])
        return None, d_joint, None, None, None, d_query.sum(0), d_key.sum(0)


def _check(failed: list[object]) -> None:
    if any(failed):
        raise MemoryError("attention found no memory for the keys and values of a head")


def _function(name: str) -> Any:
    pointers = [ctypes.c_void_p] * (2 if name == "attention_forward" else 4)
    between = (ctypes.c_long, ctypes.c_long)
    return library.function(name, [ctypes.c_void_p, *between, *pointers], ctypes.c_int)


class _Told(ctypes.Structure):
    """`Attention` of attention.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("queries", "keys", "values")),
        *((name, ctypes.c_long) for name in ("query_row", "key_row", "value_row")),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm", "cos", "sin")),
        *((name, ctypes.c_long) for name in ("turned", "head", "query_heads", "key_heads")),
        ("window", ctypes.c_long),
        ("scale", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("starts", ctypes.c_void_p),
        ("documents", ctypes.c_long),
    )

    @classmethod
    def of(
        cls,
        heads: Heads,
        joint: Tensor,
        cos: Tensor,
        sin: Tensor,
        starts: Tensor,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
    ) -> _Told:
        row = joint.shape[1]
        return cls(
            *_places(joint, heads),
            *(row, row, row),
            _pointer(query_norm),
            _pointer(key_norm),
            cos.data_ptr(),
            sin.data_ptr(),
            2 * cos.shape[1],
            heads.head_width,
            heads.heads,
            heads.kv_heads,
            heads.window,
            heads.scale,
            heads.epsilon,
            starts.data_ptr(),
            starts.shape[0] - 1,
        )


class _Wanted(ctypes.Structure):
    """`Gradients` of attention.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("queries", "keys", "values")),
        *((name, ctypes.c_long) for name in ("query_row", "key_row", "value_row")),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm")),
    )

    @classmethod
    def of(cls, d_joint: Tensor, d_norms: Tensor | None, heads: Heads) -> _Wanted:
        row = d_joint.shape[1]
        behind = None if d_norms is None else d_norms[heads.heads :]
        return cls(*_places(d_joint, heads), *(row, row, row), _pointer(d_norms), _pointer(behind))


def _places(joint: Tensor, heads: Heads) -> tuple[int, int, int]:
    """Where the queries, keys and values of the first cell begin."""
    start, size = joint.data_ptr(), joint.element_size() * heads.head_width
    keys = start + size * heads.heads
    return start, keys, keys + size * heads.kv_heads


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
