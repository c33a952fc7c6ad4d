"""The part of a block that works on each cell by itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fourstage import kernels
from fourstage.kernels import elements
from fourstage.model.config import Activation, ModelConfig
from fourstage.model.linear import fused, joined


def activate(activation: Activation, x: Tensor) -> Tensor:
    """The non-linearity: of the gate where there is one, else of the MLP's inner numbers."""
    if activation == "swiglu":
        return F.silu(x)
    if activation == "relu2":
        return F.relu(x).square()
    # GELU's tanh form in GPT-2 and Gemma, the exact one in GPT-NeoX.
    return F.gelu(x, approximate="none" if activation == "gelu" else "tanh")


class MLP(nn.Module):
    """`down(f(gate x) * up x)` (Shazeer, 2020) or `down(f(up x))`, f relu^2 (So et al., 2021)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation: Activation = config.activation
        bias = config.mlp_bias
        if config.gated:
            self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=bias)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=bias)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=bias)
        self.gated = config.gated

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            inner = self.up_proj(x)
            if self.activation == "relu2" and kernels.usable(inner):
                return self.down_proj(elements.relu2(inner))
            return self.down_proj(activate(self.activation, inner))
        if self.activation == "swiglu" and kernels.usable(x):
            return self.down_proj(elements.swiglu(joined(x, (self.gate_proj, self.up_proj))))
        gate, up = fused(x, (self.gate_proj, self.up_proj))
        return self.down_proj(activate(self.activation, gate) * up)
