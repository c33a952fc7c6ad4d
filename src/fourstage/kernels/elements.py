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
# Behind the first and the last row of a call, which all of them begin with.
_ARGUMENTS = {
    "swiglu_forward": [_POINTER, _LONG, _POINTER],
    "swiglu_backward": [_POINTER, _POINTER, _LONG, _POINTER],
    "relu2_forward": [_POINTER, _POINTER],
    "relu2_backward": [_POINTER, _POINTER, _POINTER],
    "rms_forward": [_POINTER, _POINTER, _FLOAT, _LONG, _POINTER, _POINTER],
    "rms_backward": [*[_POINTER] * 4, _LONG, _POINTER, _POINTER],
    "logprobs_forward": [_POINTER, _POINTER, _LONG, *[_POINTER] * 3],
    "logprobs_backward": [*[_POINTER] * 5, _LONG],
}


def _function(name: str) -> Any:
    return library.function(name, [_LONG, _LONG, *_ARGUMENTS[name]])


def _over_rows(name: str, rows: int, floats: int, *arguments: Tensor | float) -> None:
    """Calls a kernel on all rows, on several threads where there are many floats."""
    run = _function(name)
    told = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    deal(parts(rows, floats), lambda _, first, end: run(first, end, *told))


def swiglu(both: Tensor) -> Tensor:
    """[rows, 2 width], the gate's numbers before those of up -> silu(gate) * up [rows, width]."""
    return _Swiglu.apply(both.contiguous())


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        rows, width = both.shape[0], both.shape[1] // 2
        output = both.new_empty(rows, width)
        _over_rows("swiglu_forward", rows, both.numel(), both, width, output)
        ctx.save_for_backward(both)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        d_output, d_both = d_output.contiguous(), torch.empty_like(both)
        rows, width = d_output.shape
        _over_rows("swiglu_backward", rows, both.numel(), both, d_output, width, d_both)
        return d_both


def relu2(x: Tensor) -> Tensor:
    """`relu(x)^2` of each number."""
    return _Relu2.apply(x.contiguous())


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output = torch.empty_like(x)
        _over_rows("relu2_forward", x.numel(), x.numel(), x, output)
        ctx.save_for_backward(x)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_output, d_x = d_output.contiguous(), torch.empty_like(x)
        _over_rows("relu2_backward", x.numel(), x.numel(), x, d_output, d_x)
        return d_x


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`x / sqrt(mean(x^2) + epsilon) * weight` over the last axis of [rows, width]."""
    return _RmsNorm.apply(x.contiguous(), weight, epsilon)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows, width = x.shape
        output, scales = torch.empty_like(x), x.new_empty(rows)
        _over_rows("rms_forward", rows, x.numel(), x, weight, epsilon, width, output, scales)
        ctx.save_for_backward(x, weight, scales)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor):
        x, weight, scales = ctx.saved_tensors
        rows, width = x.shape
        d_output, d_x, run = d_output.contiguous(), torch.empty_like(x), _function("rms_backward")
        ranges = parts(rows, x.numel())
        # Each thread adds to a row of its own.
        d_weights = x.new_zeros(len(ranges), width)
        told = [tensor.data_ptr() for tensor in (x, weight, scales, d_output)]
        deal(
            ranges,
            lambda number, first, end: run(
                first, end, *told, width, d_x.data_ptr(), d_weights[number].data_ptr()
            ),
        )
        return d_x, d_weights.sum(0), None


def logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """[n] `log softmax(hidden weight^T)[targets]`, its `log sum exp`, and entropies in nats.

    Entropies are without gradient.

    Args:
        hidden: [n, width]. weight: [vocab, width]. targets: [n] int64.
        chunk: cells whose logits exist at a time.
        keep: whether the backward pass finds the logits of all chunks kept, or makes them again.

    Raises:
        IndexError: a target is outside the vocabulary.
    """
    if len(targets):
        lowest, highest = (int(target) for target in targets.aminmax())
        if lowest < 0 or highest >= len(weight):
            outside = lowest if lowest < 0 else highest
            raise IndexError(f"target {outside} is outside the vocabulary of {len(weight)}")
    keep = keep and torch.is_grad_enabled()
    return _LogProbs.apply(hidden.contiguous(), weight, targets.contiguous(), chunk, keep)


class _LogProbs(torch.autograd.Function):
    """Logits become their own gradient in place: they are written twice and read four times."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = hidden.new_empty(3, len(targets))
        keep, kept = keep and any(ctx.needs_input_grad), []
        for start in range(0, len(targets), chunk):
            cells = slice(start, start + chunk)
            logits, wanted = hidden[cells] @ weight.t(), targets[cells]
            told = (logits, wanted, logits.shape[1], *found[:, cells].unbind())
            _over_rows("logprobs_forward", len(wanted), logits.numel(), *told)
            if keep:
                kept.append(logits)
            # Before the next chunk is made.
            del logits, told
        logprobs, logsumexp, entropies = found.unbind()
        ctx.chunk, ctx.kept = chunk, kept
        ctx.save_for_backward(hidden, weight, targets, logsumexp)
        ctx.mark_non_differentiable(entropies)
        return logprobs, logsumexp, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprobs: Tensor, d_logsumexp: Tensor, _: Tensor):
        hidden, weight, targets, logsumexp = ctx.saved_tensors
        given = [x.contiguous() for x in (targets, logsumexp, d_logprobs, d_logsumexp)]
        kept, ctx.kept = ctx.kept, None
        if kept is None:
            raise RuntimeError("the logits were used up by an earlier backward pass")
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for number, start in enumerate(range(0, len(targets), ctx.chunk)):
            cells = slice(start, start + ctx.chunk)
            logits = kept[number] if kept else hidden[cells] @ weight.t()
            told = (logits, *(x[cells] for x in given), logits.shape[1])
            _over_rows("logprobs_backward", logits.shape[0], logits.numel(), *told)
            if d_hidden is not None:
                torch.mm(logits, weight, out=d_hidden[cells])
            if d_weight is not None:
                d_weight.addmm_(logits.t(), hidden[cells])
            if kept:
                kept[number] = None
            del logits, told
        return d_hidden, d_weight, None, None, None
