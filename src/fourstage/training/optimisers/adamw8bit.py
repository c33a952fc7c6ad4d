"""AdamW whose moments take a byte each: block-wise dynamic quantisation.

Codes and scales are plain tensors, so that a checkpoint holds them as they are. (torchao's compiles
its update at every start, which on a CPU takes a C++ compiler; and its blocks run across rows, so
that what they hold depends on how a parameter is sharded.)
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fourstage.training.optimisers.sharding import local, local_gradient, zeros_beside

# Neighbours in a row that share a scale; what is left of a row is a shorter block.
BLOCK = 256
# Below so many numbers a byte each saves nothing worth its error.
LEAST = 4096
_EXPONENTS = 7
_CPU = torch.device("cpu")
# Numbers in work at a time: what stays in a CPU's cache; a GPU wants large operations.
_CHUNK = {"cpu": 2**17, "cuda": 2**24}


@cache
def code_values(signed: bool, device: torch.device = _CPU) -> Tensor:
    """[256] what the codes stand for, rising: in [-1, 1] or [0, 1].

    Dynamic tree quantisation (Dettmers et al., *8-bit Optimizers via Block-wise Quantization*,
    2022): seven decades, each with twice as many evenly spread values as the one below it. Without
    a sign its bit doubles them again.
    """
    found = [0.0, 1.0]
    for place in range(_EXPONENTS):
        count = 2**place * (1 if signed else 2)
        width = 0.9 / count
        decade = 10.0 ** (place + 1 - _EXPONENTS)
        centres = [(0.1 + width * (number + 0.5)) * decade for number in range(count)]
        found += centres + ([-value for value in centres] if signed else [])
    return torch.tensor(sorted(found), device=device)


@cache
def _search_tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """[256] the upper edge of each code, and [65536] the lowest code of floats by their first bits.

    Floats in [-1, 1] that share their first 16 bits lie within at most two neighbouring codes: one
    comparison then finds the nearest, at a fifth of a search among all of them.
    """
    values = code_values(signed)
    edges = (values[1:] + values[:-1]) / 2
    first = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    least = torch.where(first < 0, first | 0xFFFF, first).view(torch.float32)
    lowest = torch.bucketize(least, edges, out_int32=True)
    return torch.cat([edges, torch.tensor([torch.inf])]).to(device), lowest.to(device)


def quantise(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """[rows, cols] fp32 -> nearest codes [rows, cols] uint8, largest of each block [rows, blocks].

    Without a sign, code 0 is not used: a second moment that became 0 would divide by eps alone.
    """
    rows, cols = values.shape
    blocks = F.pad(values, (0, -cols % BLOCK)).view(rows, -1, BLOCK)
    scales = blocks.abs().amax(-1)
    unit = (blocks / scales.clamp(min=torch.finfo(values.dtype).tiny)[..., None]).flatten()
    edges, lowest = _search_tables(signed, values.device)
    low = lowest.index_select(0, (unit.view(torch.int32) >> 16) + 2**15)
    codes = low + (unit > edges.index_select(0, low))
    if not signed:
        codes.clamp_(min=1)
    return codes.view(rows, -1)[:, :cols].to(torch.uint8), scales


def dequantise(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The values of codes [rows, cols] and scales [rows, blocks]."""
    values = code_values(signed, codes.device).index_select(0, codes.flatten().int()).view_as(codes)
    cols = codes.shape[1]
    if cols % BLOCK == 0:
        return values.view(len(codes), -1, BLOCK).mul_(scales[..., None]).view_as(codes)
    return values.mul_(scales.repeat_interleave(BLOCK, 1)[:, :cols])


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019), its two moments in 8 bits between the steps.

    An update uses the moments before they are rounded (Dettmers et al., 2022). Blocks lie within
    rows: where rows are dealt out to processes (FSDP2) the numbers are those of one process.

    Args:
        groups: of matrices, or stacked ones, whose last axis is a row.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # ty: ignore[incompatible-method-override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter] or self._begin(parameter)
                state["step"] += 1
                _update(parameter, state, group)

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        cols = local(parameter).shape[-1]
        blocks = -(-cols // BLOCK)
        # Counted on the CPU: the bias corrections are numbers, and reading them must not wait.
        state = {"step": torch.zeros(())}
        for moment in ("exp_avg", "exp_avg_sq"):
            state[f"{moment}_codes"] = zeros_beside(parameter, cols, torch.uint8)
            state[f"{moment}_scales"] = zeros_beside(parameter, blocks, torch.float32)
        self.state[parameter] = state
        return state


def _update(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    names = ("exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes", "exp_avg_sq_scales")
    tensors = [local(parameter), local_gradient(parameter), *(local(state[name]) for name in names)]
    cols = tensors[0].shape[-1]
    most = max(1, _CHUNK["cuda" if parameter.device.type == "cuda" else "cpu"] // cols)
    pieces = (tensor.view(-1, tensor.shape[-1]).split(most) for tensor in tensors)
    for part in zip(*pieces, strict=True):
        _update_rows(*part, step=float(state["step"]), group=group)


def _update_rows(
    weight: Tensor,
    gradient: Tensor,
    mean_codes: Tensor,
    mean_scales: Tensor,
    square_codes: Tensor,
    square_scales: Tensor,
    *,
    step: float,
    group: dict[str, Any],
) -> None:
    """One step of some rows: weights, codes and scales are changed in place."""
    rate, (beta1, beta2) = group["lr"], group["betas"]
    gradient = gradient.float()
    mean = dequantise(mean_codes, mean_scales, signed=True).lerp_(gradient, 1 - beta1)
    square = dequantise(square_codes, square_scales, signed=False)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    for moment, codes, scales, signed in (
        (mean, mean_codes, mean_scales, True),
        (square, square_codes, square_scales, False),
    ):
        new_codes, new_scales = quantise(moment, signed)
        codes.copy_(new_codes)
        scales.copy_(new_scales)
    denominator = square.div_(1 - beta2**step).sqrt_().add_(group["eps"])
    weight.mul_(1 - rate * group["weight_decay"])
    weight.addcdiv_(mean, denominator, value=-rate / (1 - beta1**step))
