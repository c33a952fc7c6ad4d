"""Frozen matrices in a byte or half a byte a number, and products with them.

`int8` has a scale for each row, the largest of it (Dettmers et al., *LLM.int8()*, 2022, section
2.1). `nf4` has one for each 64 neighbours of a row and codes of 4 bits whose values are quantiles
of a normal distribution (Dettmers et al., *QLoRA*, 2023, section 3). Codes of int8 are signed, so
the dtype of codes says which of the two they are.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.recipe.adapter import Base

BLOCK = 64
_INT8_MOST = 127.0
# QLoRA, appendix E.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def quantise(weight: Tensor, base: Base) -> tuple[Tensor, Tensor]:
    """[out, in] -> codes and scales.

    Returns:
        of int8 [out, in] int8 and [out, 1]; of nf4 [out, in / 2] uint8, the first of two numbers in
        the upper bits, and [out, in / 64]. What is left of a row is a shorter block.
    """
    weight = weight.detach().float()
    blocks = weight[:, None]
    if base == "nf4":
        blocks = F.pad(weight, (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scales = blocks.abs().amax(-1)
    unit = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    if base == "int8":
        return (unit * _INT8_MOST).round().to(torch.int8)[:, 0], scales
    values = torch.tensor(NF4, device=weight.device)
    nearest = torch.bucketize(unit, (values[1:] + values[:-1]) / 2).to(torch.uint8)
    pairs = nearest.flatten(1).unflatten(1, (-1, 2))[:, : -(-weight.shape[1] // 2)]
    return (pairs[..., 0] << 4) | pairs[..., 1], scales


def bytes_of(rows: int, columns: int, base: Base) -> int:
    """Bytes that a matrix [rows, columns] is held in."""
    if base == "full":
        return 4 * rows * columns
    if base == "int8":
        return rows * (columns + 4)
    return rows * (-(-columns // 2) + 4 * -(-columns // BLOCK))


def dequantise(codes: Tensor, scales: Tensor, columns: int) -> Tensor:
    """The matrix [out, columns] that codes and scales stand for, fp32."""
    if codes.dtype == torch.int8:
        return codes * (scales / _INT8_MOST)
    pairs = _pairs(codes.device).index_select(0, codes.flatten().int())
    values = pairs.view(len(codes), -1)[:, :columns]
    if columns % BLOCK == 0:
        return (values.unflatten(1, (-1, BLOCK)) * scales[..., None]).flatten(1)
    return values * scales.repeat_interleave(BLOCK, 1)[:, :columns]


@cache
def _pairs(device: torch.device) -> Tensor:
    """[256, 2] the two values of each byte."""
    values = torch.tensor(NF4)
    return torch.stack([values.repeat_interleave(16), values.repeat(16)], 1).to(device)


class QuantisedLinear(nn.Module):
    """A linear layer whose frozen matrix is held in codes.

    Attributes:
        codes, scales: as `quantise` gives them; parameters without gradient, so that they are moved
            and sharded with the others.
    """

    def __init__(self, linear: nn.Linear, base: Base):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes, scales = quantise(linear.weight, base)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """[out, in] as it is computed with, made anew each time."""
        return dequantise(self.codes, self.scales, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = _FrozenProduct.apply(x, self.codes, self.scales)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _FrozenProduct(torch.autograd.Function):
    """`x W^T` whose backward pass makes W again: kept, it would be held at full size."""

    @staticmethod
    def forward(ctx, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        ctx.columns, ctx.product = x.shape[-1], dtype
        return F.linear(x.to(dtype), dequantise(codes, scales, ctx.columns).to(dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        codes, scales = ctx.saved_tensors
        weight = dequantise(codes, scales, ctx.columns).to(ctx.product)
        return gradient.to(ctx.product) @ weight, None, None
