"""Gated activations, RMSNorm and log-probabilities as single operations with their gradients."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fourstage.kernels import library
from fourstage.kernels.dealing import deal, parts

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_ARGUMENTS = {
    "swiglu_forward": [_POINTER, _LONG, _LONG, _LONG, _POINTER],
    "swiglu_backward": [_POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER],
    "relu2_forward": [_POINTER, _LONG, _LONG, _POINTER],
    "relu2_backward": [_POINTER, _POINTER, _LONG, _LONG, _POINTER],
    "rms_forward": [_POINTER, _POINTER, _FLOAT, _LONG, _LONG, _LONG, _POINTER, _POINTER],
    "rms_backward": [*[_POINTER] * 4, _LONG, _LONG, _LONG, _POINTER, _POINTER],
    "logprobs_forward": [_POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER],
    "logprobs_backward": [*[_POINTER] * 4, _LONG, _LONG, _LONG],
}


def _function(name: str) -> Any:
    found = getattr(library.load(), name)
    if found.argtypes is None:
        found.argtypes, found.restype = _ARGUMENTS[name], None
    return found


def swiglu(both: Tensor) -> Tensor:
    """[rows, 2 width], the gate's numbers before those of up -> silu(gate) * up [rows, width]."""
    return _Swiglu.apply(both.contiguous())


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        rows, width = both.shape[0], both.shape[1] // 2
        output, run = both.new_empty(rows, width), _function("swiglu_forward")
        deal(
            parts(rows, both.numel()),
            lambda _, first, end: run(both.data_ptr(), first, end, width, output.data_ptr()),
        )
        ctx.save_for_backward(both)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> Tensor:  # ty: ignore[incompatible-method-override]
        (both,) = ctx.saved_tensors
        d_output, d_both = d_output.contiguous(), torch.empty_like(both)
        rows, width, run = both.shape[0], both.shape[1] // 2, _function("swiglu_backward")
        deal(
            parts(rows, both.numel()),
            lambda _, first, end: run(
                both.data_ptr(), d_output.data_ptr(), first, end, width, d_both.data_ptr()
            ),
        )
        return d_both


def relu2(x: Tensor) -> Tensor:
    """`relu(x)^2` of each number."""
    return _Relu2.apply(x.contiguous())


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output, run = torch.empty_like(x), _function("relu2_forward")
        deal(
            parts(x.numel(), x.numel()),
            lambda _, first, end: run(x.data_ptr(), first, end, output.data_ptr()),
        )
        ctx.save_for_backward(x)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> Tensor:  # ty: ignore[incompatible-method-override]
        (x,) = ctx.saved_tensors
        d_output, d_x, run = d_output.contiguous(), torch.empty_like(x), _function("relu2_backward")
        deal(
            parts(x.numel(), x.numel()),
            lambda _, first, end: run(
                x.data_ptr(), d_output.data_ptr(), first, end, d_x.data_ptr()
            ),
        )
        return d_x


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last axis of [rows, width]."""
    return _RmsNorm.apply(x.contiguous(), weight, epsilon)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows, width = x.shape
        output, scales, run = torch.empty_like(x), x.new_empty(rows), _function("rms_forward")
        deal(
            parts(rows, x.numel()),
            lambda _, first, end: run(
                x.data_ptr(),
                weight.data_ptr(),
                epsilon,
                first,
                end,
                width,
                output.data_ptr(),
                scales.data_ptr(),
            ),
        )
        ctx.save_for_backward(x, weight, scales)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor):  # ty: ignore[incompatible-method-override]
        x, weight, scales = ctx.saved_tensors
        rows, width = x.shape
        d_output, d_x, run = d_output.contiguous(), torch.empty_like(x), _function("rms_backward")
        ranges = parts(rows, x.numel())
        # Each thread adds to a row of its own.
        d_weights = x.new_zeros(len(ranges), width)
        deal(
            ranges,
            lambda number, first, end: run(
                x.data_ptr(),
                weight.data_ptr(),
                scales.data_ptr(),
                d_output.data_ptr(),
                first,
                end,
                width,
                d_x.data_ptr(),
                d_weights[number].data_ptr(),
            ),
        )
        return d_x, d_weights.sum(0), None


def logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """[n] `log softmax(hidden weight^T)[targets]`, and [n] the logarithm of the sum, detached.

    Args:
        hidden: [n, width]. weight: [vocab, width]. targets: [n] int64.
        chunk: cells whose logits exist at a time.
        keep: whether the backward pass finds the logits of all chunks kept, or makes them again.
    """
    return _LogProbs.apply(hidden.contiguous(), weight, targets.contiguous(), chunk, keep)


class _LogProbs(torch.autograd.Function):
    """Logits become their own gradient in place: a chunk is written once and read three times."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, keep: bool
    ) -> tuple[Tensor, Tensor]:
        found, logsumexp = hidden.new_empty(len(targets)), hidden.new_empty(len(targets))
        kept, run = [], _function("logprobs_forward")
        for start in range(0, len(targets), chunk):
            cells = slice(start, start + chunk)
            logits, wanted = hidden[cells] @ weight.t(), targets[cells]
            into, sums, rows = found[cells], logsumexp[cells], len(wanted)
            deal(
                parts(rows, logits.numel()),
                lambda _, first, end, logits=logits, wanted=wanted, into=into, sums=sums: run(
                    logits.data_ptr(),
                    wanted.data_ptr(),
                    first,
                    end,
                    logits.shape[1],
                    into.data_ptr(),
                    sums.data_ptr(),
                ),
            )
            if keep:
                kept.append(logits)
        ctx.chunk, ctx.kept = chunk, kept
        ctx.save_for_backward(hidden, weight, targets, logsumexp)
        ctx.mark_non_differentiable(logsumexp)
        return found, logsumexp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_found: Tensor, _: Tensor):  # ty: ignore[incompatible-method-override]
        hidden, weight, targets, logsumexp = ctx.saved_tensors
        d_found, kept, ctx.kept = d_found.contiguous(), ctx.kept, None
        if kept is None:
            raise RuntimeError("the logits were used up by an earlier backward pass")
        d_hidden, d_weight = torch.empty_like(hidden), None
        run = _function("logprobs_backward")
        for number, start in enumerate(range(0, len(targets), ctx.chunk)):
            cells = slice(start, start + ctx.chunk)
            logits = kept[number] if kept else hidden[cells] @ weight.t()
            wanted, sums, slopes = targets[cells], logsumexp[cells], d_found[cells]
            deal(
                parts(len(wanted), logits.numel()),
                lambda _, first, end, logits=logits, wanted=wanted, sums=sums, slopes=slopes: run(
                    logits.data_ptr(),
                    wanted.data_ptr(),
                    sums.data_ptr(),
                    slopes.data_ptr(),
                    first,
                    end,
                    logits.shape[1],
                ),
            )
            torch.mm(logits, weight, out=d_hidden[cells])
            if d_weight is None:
                d_weight = logits.t() @ hidden[cells]
            else:
                d_weight.addmm_(logits.t(), hidden[cells])
            if kept:
                kept[number] = None
        return d_hidden, d_weight, None, None, None
