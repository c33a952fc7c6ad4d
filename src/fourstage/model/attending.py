"""Attention's inner product: what each cell takes from the cells it sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.model.norms import in_fp32


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    slopes: Tensor | None = None,
) -> Tensor:
    """`softmax(cap(scale q k) + bias) v`, causal: -> [rows, heads, time, head_width].

    Args:
        q: [rows, heads, time, head_width]. k, v: [rows, kv_heads, time, head_width].
        window: cells a cell sees, itself included; 0 is all before it.
        scale: factor on scores; None is head_width ** -0.5.
        softcap: scores become `softcap * tanh(score / softcap)`; 0 is none (Gemma 2).
        slopes: [heads] what a score loses a cell of distance (ALiBi).
    """
    time, grouped = q.shape[2], q.shape[1] != k.shape[1]
    if window >= time:
        window = 0
    if not (window or softcap or slopes is not None):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
    bias = _bias(time, window, slopes, q.device)
    if not softcap:
        if bias.is_floating_point():
            bias = bias.to(q.dtype)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped
        )
    # softmax(cap(q k)) is in no fused kernel: scores are made, a group of queries at a key head.
    rows, heads, _, width = q.shape
    q = q.view(rows, k.shape[1], -1, time, width) * (width**-0.5 if scale is None else scale)
    scores = softcap * torch.tanh(in_fp32(q @ k[:, :, None].transpose(-1, -2)) / softcap)
    if bias.is_floating_point():
        scores = scores + bias.view(k.shape[1], -1, time, time)
    else:
        scores = scores.masked_fill(~bias, -torch.inf)
    mixed = torch.softmax(scores, dim=-1).to(v.dtype) @ v[:, :, None]
    return mixed.view(rows, heads, time, width)


def _bias(time: int, window: int, slopes: Tensor | None, device: torch.device) -> Tensor:
    """[time, time] which cells are seen; with slopes [heads, time, time] what scores get added."""
    cells = torch.arange(time, device=device)
    distance = cells[:, None] - cells
    seen = distance >= 0
    if window:
        seen &= distance < window
    if slopes is None:
        return seen
    fall = -slopes[:, None, None] * distance
    return fall.masked_fill(~seen, -torch.inf)
