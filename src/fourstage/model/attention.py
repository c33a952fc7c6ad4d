"""Grouped-query attention within each document."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fourstage import kernels
from fourstage.kernels import attention as kernel
from fourstage.model.config import ModelConfig
from fourstage.model.layout import Layout
from fourstage.model.linear import fused, joined
from fourstage.model.norms import RMSNorm
from fourstage.model.packed import Scores, attend_documents
from fourstage.model.positions import alibi_slopes, rotate


class Attention(nn.Module):
    """Causal grouped-query attention within each document.

    Attributes:
        window: cells that a cell sees, itself included; 0 is all before it.
        scale: factor on scores; None is head_width ** -0.5.
        slopes: [heads] of ALiBi, None without.
    """

    slopes: Tensor | None

    def __init__(self, config: ModelConfig, layer: int = 0):
        super().__init__()
        self.config = config
        self.window = config.window(layer)
        # As None, the kernel's own default: the same bits as ever.
        usual = config.attention_scale == config.head_width**-0.5
        self.scale = None if usual else config.attention_scale
        bias = config.qkv_bias
        self.q_proj = nn.Linear(config.width, config.query_width, bias=bias)
        self.k_proj = nn.Linear(config.width, config.key_width, bias=bias)
        self.v_proj = nn.Linear(config.width, config.key_width, bias=bias)
        self.o_proj = nn.Linear(config.query_width, config.width, bias=config.output_bias)
        if config.qk_norm:
            whole = config.qk_norm_whole
            widths = (config.query_width, config.key_width) if whole else (config.head_width,) * 2
            self.q_norm = RMSNorm(widths[0], config.norm_eps, config.norm_offset)
            self.k_norm = RMSNorm(widths[1], config.norm_eps, config.norm_offset)
        slopes = alibi_slopes(config.heads) if config.positions == "alibi" else None
        self.register_buffer("slopes", slopes, persistent=False)

    @torch.no_grad()
    def begin_by_content(self) -> None:
        """Sets each key head to the first query head of its group."""
        config = self.config
        queries = self.q_proj.weight.view(config.kv_heads, -1, config.head_width, config.width)
        self.k_proj.weight.copy_(queries[:, 0].reshape_as(self.k_proj.weight))

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., queries or keys] -> [..., heads or kv_heads, head_width], queries and keys normed.

        Over all heads together (OLMo 2) or each by itself (Henry et al., 2020).
        """
        c = self.config
        if c.qk_norm and c.qk_norm_whole:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.unflatten(-1, (c.heads, c.head_width))
        k = k.unflatten(-1, (c.kv_heads, c.head_width))
        v = v.unflatten(-1, (c.kv_heads, c.head_width))
        if c.qk_norm and not c.qk_norm_whole:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[cells, width] -> queries [cells, heads, head], keys and values [cells, kv_heads, head].

        `cos` and `sin` are those of the cells, [cells, rotary_width / 2].
        """
        q, k, v = self.heads(*fused(x, (self.q_proj, self.k_proj, self.v_proj)))
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, keep: tuple | None
    ) -> Tensor:
        c = self.config
        if keep is None and self.in_one_kernel and kernels.usable(x):
            return self._in_one_kernel(x, cos, sin, layout)
        q, k, v = self.project(x, cos, sin)
        if keep is not None:
            cache, layer = keep
            cache.write_prompts(layer, k, v, layout)
        scores = Scores(self.window, self.scale, c.attention_softcap, self.slopes)
        return self.o_proj(attend_documents(q, k, v, layout, scores).flatten(1))

    @property
    def in_one_kernel(self) -> bool:
        """Whether the C kernel's formula is this layer's."""
        c = self.config
        plain = self.slopes is None and not c.attention_softcap
        return plain and not (c.qk_norm and c.qk_norm_whole) and c.head_width <= kernel.MOST_HEAD

    def _in_one_kernel(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        c = self.config
        heads = kernel.Heads(
            c.heads, c.kv_heads, c.head_width, c.attention_scale, self.window, c.norm_eps
        )
        together = joined(x, (self.q_proj, self.k_proj, self.v_proj))
        norms = (self.q_norm.factors, self.k_norm.factors) if c.qk_norm else (None, None)
        return self.o_proj(kernel.attend(together, cos, sin, layout.starts, heads, *norms))
