"""The one model of all four stages: it trains, generates, scores and values.

A Llama with options (RMSNorm, rotary positions, grouped queries, gated or squared MLP, optional
norms on queries and keys), named as Hugging Face names it, on a flat batch without padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.model.config import ModelConfig
from fourstage.model.decoding import decode
from fourstage.model.layout import Layout, from_buckets, to_buckets
from fourstage.randomness import generator

if TYPE_CHECKING:
    from fourstage.model.cache import KVCache

Head = Literal["language", "scalar"]


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary_table(config: ModelConfig, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [context, head_width / 2] (Su et al., RoFormer, 2021)."""
    pairs = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / config.rope_theta ** (pairs / config.head_width)
    angles = torch.outer(torch.arange(config.context, device=device).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + half) of `x` [cells, heads, head_width] by each cell's angles."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[..., None, :].to(x.dtype), sin[..., None, :].to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention within each document."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(config.width, config.query_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.key_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.key_width, bias=False)
        self.o_proj = nn.Linear(config.query_width, config.width, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_width, config.norm_eps)
            self.k_norm = RMSNorm(config.head_width, config.norm_eps)

    @torch.no_grad()
    def begin_by_content(self) -> None:
        """Sets each key head to the first query head of its group."""
        config = self.config
        queries = self.q_proj.weight.view(config.kv_heads, -1, config.head_width, config.width)
        self.k_proj.weight.copy_(queries[:, 0].reshape_as(self.k_proj.weight))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[cells, width] -> queries [cells, heads, head], keys and values [cells, kv_heads, head].

        One product for all three: small matrices run well below the speed of larger ones.
        """
        c = self.config
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        q, k, v = F.linear(x, weight).split([c.query_width, c.key_width, c.key_width], dim=-1)
        q = q.unflatten(-1, (c.heads, c.head_width))
        k = k.unflatten(-1, (c.kv_heads, c.head_width))
        v = v.unflatten(-1, (c.kv_heads, c.head_width))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, keep: tuple | None
    ) -> Tensor:
        c = self.config
        q, k, v = self.project(x, cos, sin)
        if keep is not None:
            cache, layer = keep
            cache.write_prompts(layer, k, v, layout)
        parts = []
        joined = torch.cat([q, k, v.to(q.dtype)], dim=1)
        for part in to_buckets(joined, layout):
            rows = part.transpose(1, 2)
            q, k, v = rows.split([c.heads, c.kv_heads, c.kv_heads], dim=1)
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=c.kv_heads != c.heads
            )
            parts.append(mixed.transpose(1, 2))
        return self.o_proj(from_buckets(parts, layout).flatten(1))


class MLP(nn.Module):
    """`down(silu(gate x) * up x)` (Shazeer, 2020), `down(relu(up x)^2)` (So et al., 2021)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "relu2":
            return self.down_proj(F.relu(self.up_proj(x)).square())
        weight = torch.cat([self.gate_proj.weight, self.up_proj.weight])
        gate, up = F.linear(x, weight).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, keep: tuple | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layout, keep)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embeddings, blocks and the final norm: everything but the head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Transformer(nn.Module):
    """A decoder-only transformer with a language head or a scalar head (reward, value).

    Attributes:
        reward_mean, reward_std: what a reward model's raw scores are normalised with; floats kept
            beside the weights, not applied by `scores`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, head: Head = "language"):
        super().__init__()
        self.config = config
        self.head: Head = head
        self.model = Body(config)
        self.reward_mean = 0.0
        self.reward_std = 1.0
        if head == "scalar":
            self.score = nn.Linear(config.width, 1, bias=False)
        elif not config.tie_embeddings:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        cos, sin = rotary_table(config, "cpu")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, layout: Layout, cache: KVCache | None = None) -> Tensor:
        """[cells] -> hidden states after the final norm, [cells, width].

        With a `cache`, document i also fills row i of it.
        """
        x = self.model.embed_tokens(tokens)
        cos, sin = self.cos[layout.positions], self.sin[layout.positions]
        for index, block in enumerate(self.model.layers):
            x = block(x, cos, sin, layout, None if cache is None else (cache, index))
        return self.model.norm(x)

    def decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """One new token a row against the cache: [batch] -> hidden states [batch, width]."""
        return decode(self, tokens, cache)

    @property
    def output_weight(self) -> Tensor:
        """[vocab, width] of the language head."""
        embedding = self.model.embed_tokens
        return embedding.weight if self.config.tie_embeddings else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., vocab]."""
        return F.linear(hidden, self.output_weight)

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [...], the raw score or value."""
        return self.score(hidden).squeeze(-1)

    def initialise(self, seed: int) -> Transformer:
        """Weights as a function of the seed alone: N(0, 1/width), output projections zero.

        Zero output projections let every block start as the identity (Zhang et al., Fixup, 2019);
        with them small runs learn faster at a high rate. Each key projection starts equal to the
        queries' of its group, so that attention begins by comparing contents (Trockman and Kolter,
        *Mimetic Initialization of Self-Attention Layers*, 2023): looking back is then learnt from
        half the tokens.
        """
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() < 2:
                    weight.fill_(1.0)
                elif name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.zero_()
                elif name == "score.weight":
                    self._draw(weight, seed, name, (weight.shape[1] + 1) ** -0.5)
                elif name.endswith("embed_tokens.weight") and not self.config.tie_embeddings:
                    self._draw(weight, seed, name, 1.0)
                else:
                    self._draw(weight, seed, name, weight.shape[1] ** -0.5)
            for module in self.modules():
                if isinstance(module, Attention):
                    module.begin_by_content()
        return self

    @staticmethod
    def _draw(weight: Tensor, seed: int, name: str, std: float) -> None:
        drawn = torch.randn(weight.shape, generator=generator(seed, "weights", name))
        weight.copy_(drawn * std)

    def with_scalar_head(self, seed: int) -> Transformer:
        """A copy of the body, a new scalar head: N(0, 1/sqrt(width + 1)) (Stiennon, 2020)."""
        scorer = Transformer(self.config, head="scalar")
        scorer.initialise(seed)
        scorer.model.load_state_dict(self.model.state_dict())
        return scorer.to(self.model.norm.weight.device)
