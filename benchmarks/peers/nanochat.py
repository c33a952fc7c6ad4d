"""A model as nanochat describes its own.

Rewritten from the project's description: rotary positions, norms on queries and keys, RMSNorm
without weights (also on the embeddings), relu^2 in the MLP, table and head apart, no biases. Output
projections start at zero. No code is copied; the soft cap on its logits is left out, which spares
this peer a pass over its largest tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers.shapes import Shape


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., RoFormer, 2021) on [rows, heads, time, head]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.q = nn.Linear(shape.width, shape.width, bias=False)
        self.k = nn.Linear(shape.width, shape.width, bias=False)
        self.v = nn.Linear(shape.width, shape.width, bias=False)
        self.mix = nn.Linear(shape.width, shape.width, bias=False)
        self.up = nn.Linear(shape.width, shape.plain_mlp, bias=False)
        self.down = nn.Linear(shape.plain_mlp, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[rows, time, width] -> the same."""
        y = norm(x)
        parts = (layer(y) for layer in (self.q, self.k, self.v))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = norm(turned(q, cos, sin)), norm(turned(k, cos, sin))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(norm(x))).square())


class Nanochat(nn.Module):
    """[rows, time] token ids -> [rows, time, vocab] logits."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        half = shape.width // shape.heads // 2
        rates = 10000.0 ** -(torch.arange(half).float() / half)
        angles = torch.outer(torch.arange(shape.context).float(), rates)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith(("mix.weight", "down.weight")):
                nn.init.zeros_(parameter)
            elif name == "tokens.weight":
                nn.init.normal_(parameter)
            elif name == "head.weight":
                nn.init.normal_(parameter, std=0.001)
            else:
                bound = 3**0.5 * parameter.shape[1] ** -0.5
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        x = norm(self.tokens(tokens))
        cos, sin = self.cos[:time].to(x.dtype), self.sin[:time].to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(norm(x))
