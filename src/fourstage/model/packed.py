"""Attention over documents that lie back to back, each cell seeing those of its own document.

Three ways to the same numbers:
- buckets of like length (`model.layout`), everywhere;
- FlashAttention-2 (Dao, 2023) on the cells as they lie, in bf16 on CUDA: no gather, no padding;
- on CUDA within a compiled block, where scores are capped or fall with distance, a kernel that the
  compiler makes of them (Dong et al., *Flex Attention*, 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fourstage.model.attending import attend
from fourstage.model.layout import Layout, from_buckets, to_buckets

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Of the flash kernels.
_MOST_HEAD = 256
# Cells a side of the tiles of flex attention.
TILE = 128
# torch 2.11 takes shared key heads as they are; later ones want it said.
_SAYS_SHARED = torch.__version__ >= "2.12"


@dataclass(frozen=True)
class Scores:
    """What becomes of the products of queries and keys before the softmax.

    Attributes:
        window: cells a cell sees, itself included; 0 is all before it in its document.
        scale: factor on scores; None is head_width ** -0.5.
        softcap: scores become `softcap * tanh(score / softcap)`; 0 is none (Gemma 2).
        slopes: [heads] what a score loses a cell of distance (ALiBi); None is nothing.
    """

    window: int = 0
    scale: float | None = None
    softcap: float = 0.0
    slopes: Tensor | None = None

    @property
    def are_plain(self) -> bool:
        return not self.softcap and self.slopes is None


def attend_documents(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scores: Scores) -> Tensor:
    """Causal attention within each document: -> [cells, heads, head_width].

    Args:
        q: [cells, heads, head_width]. k, v: [cells, kv_heads, head_width].
    """
    if q.device.type == "cuda" and torch.version.hip is None:
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        if scores.are_plain and q.dtype == torch.bfloat16 and q.shape[-1] <= _MOST_HEAD:
            return _flash(q, k, v, layout, scores)
        if not scores.are_plain and torch.compiler.is_compiling():
            return flex(q, k, v, layout.tiles[scores.window], scores)
    return _buckets(q, k, v, layout, scores)


def _in_buckets(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scores: Scores) -> Tensor:
    parts, heads = [], [q.shape[1], k.shape[1], v.shape[1]]
    for part in to_buckets(torch.cat([q, k, v.to(q.dtype)], dim=1), layout):
        q, k, v = part.transpose(1, 2).split(heads, dim=1)
        mixed = attend(
            q,
            k,
            v,
            window=scores.window,
            scale=scores.scale,
            softcap=scores.softcap,
            slopes=scores.slopes,
        )
        parts.append(mixed.transpose(1, 2))
    return from_buckets(parts, layout)


_buckets: Callable[..., Tensor] = _in_buckets


def keep_buckets_out_of_graphs() -> None:
    """Has compiled blocks call the buckets as they are written: each batch has other ones."""
    global _buckets

    @torch.compiler.disable
    def apart(*given: Any) -> Tensor:
        mixed = _in_buckets(*given)
        torch._dynamo.maybe_mark_dynamic(mixed, 0)
        return mixed

    _buckets = apart


# Flash


def flash_arguments(layout: Layout, scores: Scores, shared: bool) -> dict[str, Any]:
    """What `varlen_attn` is told beside queries, keys and values.

    Args:
        shared: whether several heads of queries share one of keys.
    """
    starts = layout.starts.int()
    # How many cells the largest document may have: of few values, as kernels are compiled for each.
    most = layout.room
    told = {
        "cu_seq_q": starts,
        "cu_seq_k": starts,
        "max_q": most,
        "max_k": most,
        "scale": scores.scale,
        # Cells before and behind; -1 is all.
        "window_size": (scores.window - 1 if scores.window else -1, 0),
    }
    return told | ({"enable_gqa": True} if shared and _SAYS_SHARED else {})


def _flash(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scores: Scores) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    told = flash_arguments(layout, scores, q.shape[1] != k.shape[1])
    return cast("Tensor", varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), **told))


# Flex


def flex(q: Tensor, k: Tensor, v: Tensor, tiles: BlockMask, scores: Scores) -> Tensor:
    """As `attend_documents`, by flex attention; outside of a compiled function without a kernel."""
    from torch.nn.attention.flex_attention import flex_attention

    cap, slopes = scores.softcap, scores.slopes

    def changed(score: Tensor, row: Tensor, head: Tensor, of: Tensor, seen: Tensor) -> Tensor:
        if cap:
            score = cap * torch.tanh(score / cap)
        return score if slopes is None else score - slopes[head] * (of - seen)

    mixed = flex_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.to(q.dtype).transpose(0, 1)[None],
        score_mod=None if scores.are_plain else changed,
        block_mask=tiles,
        scale=scores.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return mixed[0].transpose(0, 1)


def tiles_of(layout: Layout, window: int = 0) -> BlockMask:
    """Which tiles of [cells, cells] flex attention computes, and which of them it has to mask.

    Found from where documents start: a mask of every pair of cells would take gigabytes.
    """
    from torch.nn.attention.flex_attention import BlockMask

    cells, ids, device = layout.cells, layout.document_ids, layout.document_ids.device
    count = -(-cells // TILE)
    top = TILE * torch.arange(count, device=device)
    bottom = (top + TILE - 1).clamp(max=cells - 1)
    # The first cell that any cell of a tile's rows sees is that of its first row.
    first = layout.starts[ids[top]]
    whole_from = layout.starts[ids[bottom]]
    if window:
        first = first.maximum(top - window + 1)
        whole_from = whole_from.maximum(bottom - window + 1)
    columns = torch.arange(count, device=device)
    touched = (columns >= (first // TILE)[:, None]) & (columns <= columns[:, None])
    # All cells of its columns are seen by all of its rows, of which none is behind the last cell.
    whole = touched & (columns < columns[:, None]) & (top >= whole_from[:, None])
    whole &= (top + TILE <= cells)[:, None]

    def sees(row: Tensor, head: Tensor, of: Tensor, seen: Tensor) -> Tensor:
        found = (of >= seen) & (ids[of] == ids[seen])
        return found & (of - seen < window) if window else found

    return BlockMask.from_kv_blocks(
        *_listed(touched & ~whole),
        *_listed(whole),
        BLOCK_SIZE=TILE,
        mask_mod=sees,
        seq_lengths=(cells, cells),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, columns] bool -> how many of each row, and which, the chosen ones in front."""
    count = chosen.sum(-1, dtype=torch.int32)
    order = chosen.int().argsort(dim=-1, descending=True, stable=True).int()
    return count[None, None], order[None, None]
