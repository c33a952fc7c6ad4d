"""One step of generation: the forward pass of a single new token a row, against the cache.

The layers are the model's own; what differs from `Transformer.forward` is the shape of the work.
A step is many small operations, so here they are as few as possible.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.model.cache import KVCache

if TYPE_CHECKING:
    from fourstage.model.transformer import MLP, Attention, Block, Transformer


def decode(model: Transformer, tokens: Tensor, cache: KVCache) -> Tensor:
    """Reads one token a row, each at its own position: [batch] -> hidden states [batch, width].

    Raises:
        ValueError: the cache is full.
    """
    x = model.model.embed_tokens(tokens)
    columns = cache.open_cells()
    half_cos, half_sin = model.cos[columns], model.sin[columns]
    cos = torch.cat([half_cos, half_cos], dim=-1)[:, None]
    sin = torch.cat([-half_sin, half_sin], dim=-1)[:, None]
    blocks = cast("Iterable[Block]", model.model.layers)
    for layer, block in enumerate(blocks):
        read = block.input_layernorm(x)
        x = x + _attend(block.self_attn, read, cos, sin, columns, cache, layer)
        x = x + _mlp(block.mlp, block.post_attention_layernorm(x))
    return model.model.norm(x)


def _attend(
    attention: Attention,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    columns: Tensor,
    cache: KVCache,
    layer: int,
) -> Tensor:
    """[batch, width] -> [batch, width].

    Two batched products and a softmax: for one query a row they run 1.3-2 times as fast on a CPU
    as `scaled_dot_product_attention`. The queries that share a key head are the rows of a product.
    """
    c = attention.config
    q = attention.q_proj(x).unflatten(-1, (c.heads, c.head_width))
    k = attention.k_proj(x).unflatten(-1, (c.kv_heads, c.head_width))
    v = attention.v_proj(x).unflatten(-1, (c.kv_heads, c.head_width))
    if c.qk_norm:
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = _turn(q, cos, sin), _turn(k, cos, sin)
    keys, values = cache.append(layer, columns, k, v)
    q = q.view(-1, c.kv_heads, c.heads // c.kv_heads, c.head_width).to(keys.dtype)
    scores = torch.matmul(q, keys.transpose(-1, -2))
    seen = cache.visible[..., : keys.shape[2]]
    weights = torch.softmax(torch.add(seen, scores, alpha=c.head_width**-0.5), dim=-1)
    mixed = torch.matmul(weights.to(values.dtype), values)
    return attention.o_proj(mixed.view(-1, c.query_width).to(x.dtype))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions with the sign of the first half folded into `sin`: three operations."""
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return torch.addcmul(x * cos, swapped, sin)


def _mlp(mlp: MLP, x: Tensor) -> Tensor:
    if mlp.activation == "relu2":
        return mlp.down_proj(F.relu(mlp.up_proj(x)).square_())
    return mlp.down_proj(F.silu(mlp.gate_proj(x)).mul_(mlp.up_proj(x)))
