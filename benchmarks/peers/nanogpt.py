"""A model as nanoGPT describes its own: GPT-2 without biases, in PyTorch.

Rewritten from the project's README and GPT-2's paper (Radford et al., 2019): LayerNorm before
attention and MLP, learned positions, GELU, a head tied to the table of tokens, causal attention
through `scaled_dot_product_attention`. No code is copied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers.shapes import Shape


class LayerNorm(nn.Module):
    """LayerNorm without bias, nanoGPT's own setting."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight)


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.before_attention = LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.mix = nn.Linear(shape.width, shape.width, bias=False)
        self.before_mlp = LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, shape.plain_mlp, bias=False)
        self.down = nn.Linear(shape.plain_mlp, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, time, width] -> the same."""
        parts = self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.before_mlp(x))))


class NanoGPT(nn.Module):
    """[rows, time] token ids -> [rows, time, vocab] logits."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        self._initialise(shape.layers)

    def _initialise(self, layers: int) -> None:
        """N(0, 0.02), what is added to the stream by 1 / sqrt(2 layers) smaller (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_added = name.endswith(("mix.weight", "down.weight"))
                std = 0.02 * (2 * layers) ** -0.5 if is_added else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
