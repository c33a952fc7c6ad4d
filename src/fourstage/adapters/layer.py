"""A linear layer with a low-rank update beside it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.adapters.quantised import QuantisedLinear
from fourstage.randomness import generator
from fourstage.recipe.adapter import Adapter


class AdaptedLinear(nn.Module):
    """`W x + s B A x + b` with W and b frozen: LoRA (Hu et al., 2021, section 4.1).

    With DoRA (Liu et al., 2024, equation 5) each row of `V = W + s B A` has a trained length m:
    `m V x / |V| + b`, where |V| is taken for a constant (section 4.3).

    Attributes:
        base_layer: the frozen layer, of full precision or quantised.
        lora_A: [rank, in], drawn uniformly from +-1/sqrt(in). lora_B: [out, rank], zero at first.
        lora_magnitude_vector: [out] m of DoRA, at first the lengths of W's rows; else None.
        scale: s.

    Args:
        name: of the layer in its model; A is drawn from it and the seed.
    """

    lora_magnitude_vector: nn.Parameter | None

    def __init__(self, linear: nn.Linear, settings: Adapter, seed: int, name: str):
        super().__init__()
        base = settings.base
        self.base_layer = linear if base == "full" else QuantisedLinear(linear, base)
        self.base_layer.requires_grad_(False)
        self.scale = settings.scale
        self.dropout = nn.Dropout(settings.dropout)
        shape, device = (settings.rank, linear.in_features), linear.weight.device
        drawn = torch.rand(shape, generator=generator(seed, "adapter", name))
        self.lora_A = nn.Parameter(((2 * drawn - 1) * linear.in_features**-0.5).to(device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, settings.rank, device=device))
        self.lora_magnitude_vector = None
        if settings.kind == "dora":
            self.lora_magnitude_vector = nn.Parameter(self._lengths(self._sum()))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]; dropout is on what the update reads."""
        update = F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B)
        y = self.base_layer(x) + self.scale * update
        if self.lora_magnitude_vector is None:
            return y
        ratio = (self.lora_magnitude_vector / self._lengths(self._sum())).to(y.dtype)
        bias = self.base_layer.bias
        return y * ratio if bias is None else (y - bias) * ratio + bias

    def adapter(self) -> list[nn.Parameter]:
        """What is trained beside the base layer."""
        return list(self.parameters(recurse=False))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that computes the same, without dropout."""
        weight = self._sum()
        if self.lora_magnitude_vector is not None:
            weight *= (self.lora_magnitude_vector / self._lengths(weight))[:, None]
        rows, columns = weight.shape
        plain = nn.Linear(columns, rows, bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(weight), self.base_layer.bias
        return plain

    @torch.no_grad()
    def _sum(self) -> Tensor:
        """[out, in] `W + s B A`, fp32."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return torch.addmm(self.base_layer.weight, self.lora_B, self.lora_A, alpha=self.scale)

    @staticmethod
    def _lengths(rows: Tensor) -> Tensor:
        """[out, in] -> [out], above zero: a row of zeros stays one."""
        return torch.linalg.vector_norm(rows, dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
