"""What tells attention where a token stands: rotary angles and ALiBi's slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fourstage.model.config import ModelConfig, RopeScaling


def rotary_table(
    config: ModelConfig, device: torch.device | str, local: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [context, rotary_width / 2] (Su et al., RoFormer, 2021).

    `local` is the table of layers with a window where they have a base of their own (Gemma 3),
    which is not scaled. Without rotary positions both are empty, [context, 0]. Where angles depend
    on a document's length there are two tables, one behind the other (`table_offsets`).
    """
    theta = config.local_rope_theta if local else config.rope_theta
    width = config.rotary_width
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    frequencies, factor = 1.0 / theta ** (pairs / max(width, 1)), 1.0
    places = torch.arange(config.context, device=device).float()
    if config.rope_scaling is not None and not local:
        frequencies, factor = _scaled(frequencies, theta, config.rope_scaling, config.context)
    angles = torch.cat([torch.outer(places, each) for each in torch.atleast_2d(frequencies)])
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def table_offsets(
    config: ModelConfig, lengths: Sequence[int], device: torch.device | str
) -> Tensor | None:
    """[documents] where the angles of documents of `lengths` begin in the table; None: at 0.

    LongRoPE has a table for documents of up to the original context and one for longer ones. A
    document that is being generated keeps the one it began with.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "longrope" or not _has_long(scaling, config.context):
        return None
    are_long = [length > scaling.original_context for length in lengths]
    return config.context * torch.tensor(are_long, device=device).long()


def _has_long(scaling: RopeScaling, context: int) -> bool:
    return 0 < scaling.original_context < context


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + half) of `x` [cells, heads, head_width] by each cell's angles.

    Of a head that is wider than the angles are for, only the first numbers are turned.
    """
    turned = 2 * cos.shape[-1]
    if not turned:
        return x
    rest = []
    if turned < x.shape[-1]:
        x, *rest = x.split([turned, x.shape[-1] - turned], dim=-1)
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[..., None, :].to(x.dtype), sin[..., None, :].to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, *rest], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """[heads] how much a score falls a cell of distance (Press et al., *Train Short, Test Long*).

    The powers of 2^(-8 / n) for n heads, a power of two; of any other number, those of the power
    of two below it, then every other one of the power above it.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes = _powers(below) + _powers(2 * below)[::2]
    return torch.tensor(slopes[:heads], dtype=torch.float32, device="cpu")


def _powers(heads: int) -> list[float]:
    return [2 ** (-8 * (head + 1) / heads) for head in range(heads)]


def _scaled(
    frequencies: Tensor, theta: float, scaling: RopeScaling, context: int
) -> tuple[Tensor, float]:
    """The frequencies for a longer context, and what cosines and sines are multiplied by.

    `dynamic` takes them for the whole context, where transformers takes those of the longest
    sequence at hand: a token means the same alone, in a batch, and while it is being generated.
    """
    width = 2 * frequencies.shape[0]
    original = scaling.original_context or context
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "dynamic":
        stretch = scaling.factor * max(context, original) / original - (scaling.factor - 1)
        # A base of its own, so that the slowest pair is stretched in full and the fastest not.
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=frequencies.device)
        base = theta * stretch ** (width / (width - 2)) if width > 2 else theta
        return 1.0 / base ** (exponents / width), 1.0
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling, original), 1.0
    if scaling.kind == "longrope":
        return _longrope(frequencies, scaling, context, original)
    return _yarn(frequencies, theta, scaling, original)


def _llama3(frequencies: Tensor, scaling: RopeScaling, original: int) -> Tensor:
    """Llama 3.1: pairs of few turns in the original context are stretched, those of many not."""
    turns = original * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency, scaling.high_frequency
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(
    frequencies: Tensor, theta: float, scaling: RopeScaling, original: int
) -> tuple[Tensor, float]:
    """Peng et al., *YaRN* (2023), section 3.2; its temperature, eq. 22, as 0.1 ln(factor) + 1."""
    half = frequencies.shape[0]

    def pair_of(turns: float) -> float:
        """Which pair turns so often in the original context."""
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair_of(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_of(scaling.beta_slow)), 2 * half - 1)
    # Two equal ends leave a step between two pairs, and no division by zero.
    span = high - low or 0.001
    pairs = torch.arange(half, dtype=torch.float32, device=frequencies.device)
    stretched = ((pairs - low) / span).clamp(0, 1)
    scaled = frequencies / scaling.factor * stretched + frequencies * (1 - stretched)
    usual = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return scaled, scaling.attention_factor or usual


def _longrope(
    frequencies: Tensor, scaling: RopeScaling, context: int, original: int
) -> tuple[Tensor, float]:
    """Ding et al., *LongRoPE* (2024): a factor a pair, those of short documents before those of
    long ones, which there are where the context is longer than the original one.
    """
    chosen = [scaling.short_factors]
    if _has_long(scaling, context):
        chosen.append(scaling.long_factors)
    factors = torch.tensor(chosen, dtype=torch.float32, device=frequencies.device)
    usual = 1.0
    if scaling.factor > 1:
        usual = math.sqrt(1 + math.log(scaling.factor) / math.log(original))
    return frequencies / factors, scaling.attention_factor or usual
