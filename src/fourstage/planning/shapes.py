"""From a number of parameters to a shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fourstage.model.config import GATED, Activation, ModelConfig
from fourstage.planning.published import Points, through

# parameters -> width / layers. 32 at 1M (4 layers of 128), 64 in GPT-3 Small, 128 from LLaMA-7B on.
ASPECT: Points = ((1e6, 32), (125e6, 64), (6.7e9, 128), (70e9, 102))
# The embedded world's words give no more pieces than these, whatever the model.
WORLD_VOCABULARY = 860
# Tables over this share of the parameters are better shared (GPT-2 does: 31% each at 124M).
MOST_IN_TABLES = 0.40
_DEEPEST = 160
# Widths are multiples of these up to so many numbers: published ones are, and matrices like it.
_WIDTH_STEPS = ((128, 16), (512, 32), (1024, 64), (4096, 256), (float("inf"), 512))


def context_for(params: float) -> int:
    """Tokens a model sees: 2,048 at the published sizes, less below."""
    steps = ((4e6, 256), (30e6, 512), (100e6, 1024))
    return next((context for most, context in steps if params < most), 2048)


def head_width_for(width: int) -> int:
    """32, 64 or 128 numbers a head, whichever divides the width and is usual there."""
    wanted = 32 if width <= 256 else 64 if width <= 2048 else 128
    return next((size for size in (wanted, 64, 32, 16, 8, 4, 2) if width % size == 0), width)


def kv_heads_for(heads: int, params: float) -> int:
    """All heads below 30B; above, the largest divisor of them up to 8, which Llama 2 70B has."""
    if params < 30e9:
        return heads
    return max(count for count in range(1, min(8, heads) + 1) if heads % count == 0)


def mlp_width_for(width: int, activation: str) -> int:
    """8/3 of the width with a gate, 4 times without: the same number of weights."""
    if activation not in GATED:
        return 4 * width
    unit = 256 if width >= 2048 else 32
    return math.ceil(8 * width / 3 / unit) * unit


@dataclass(frozen=True)
class Target:
    """What a shape is searched for, and what of it is already fixed (None: free).

    `options` are any others of `ModelConfig`.
    """

    params: float
    vocab_size: int
    context: int
    activation: Activation = "swiglu"
    qk_norm: bool = True
    tie_embeddings: bool | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    mlp_width: int | None = None
    head_width: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def complete(target: Target, width: int, layers: int) -> ModelConfig:
    """The shape of this width and depth, every other size by its rule unless fixed."""
    if target.head_width or target.heads is None:
        head_width = target.head_width or head_width_for(width)
        heads = target.heads or max(1, width // head_width)
    else:
        # ModelConfig divides the width by the heads, and says so where it cannot.
        head_width, heads = 0, target.heads
    sizes: dict[str, Any] = {
        "vocab_size": target.vocab_size,
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": target.kv_heads or kv_heads_for(heads, target.params),
        "mlp_width": target.mlp_width or mlp_width_for(width, target.activation),
        "context": target.context,
        "head_width": head_width,
        "activation": target.activation,
        "qk_norm": target.qk_norm,
        **target.options,
    }
    if target.tie_embeddings is not None:
        return ModelConfig(**sizes, tie_embeddings=target.tie_embeddings)
    untied = ModelConfig(**sizes, tie_embeddings=False)
    tables = 2 * target.vocab_size * width
    if tables <= MOST_IN_TABLES * untied.parameters():
        return untied
    return ModelConfig(**sizes, tie_embeddings=True)


def shape_for(target: Target) -> ModelConfig:
    """The shape whose count is nearest the target at the usual ratio of width to depth.

    Widths in even steps are tried, each at the two depths that come nearest; a factor two off the
    usual ratio counts like 10% off the number of parameters.
    """
    aspect = through(ASPECT, target.params, beyond=False)
    guess = _guess_width(target, aspect)
    unit = next(step for most, step in _WIDTH_STEPS if guess < most)
    low, high = max(unit, int(guess * 0.6) // unit * unit), int(guess * 1.6) + unit
    widths = [target.width] if target.width else list(range(low, high + 1, unit))
    best: tuple[float, ModelConfig] | None = None
    for width in widths:
        if not target.width and not _heads_divide(target, width):
            continue
        for layers in [target.layers] if target.layers else _depths(target, width):
            config = complete(target, width, layers)
            error = abs(math.log(config.parameters() / target.params))
            cost = error + 0.15 * abs(math.log(width / layers / aspect))
            if best is None or cost < best[0]:
                best = (cost, config)
    if best is None:
        width = math.ceil(guess / target.heads) * target.heads if target.heads else int(guess)
        return complete(target, width, target.layers or max(1, round(width / aspect)))
    return best[1]


def _heads_divide(target: Target, width: int) -> bool:
    return not target.heads or bool(target.head_width) or width % target.heads == 0


def _guess_width(target: Target, aspect: float) -> float:
    """Width whose 12 layers width^2 (layers = width / aspect) and tables meet the target."""
    low, high = 2.0, 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        layers = target.layers or middle / aspect
        count = 12 * layers * middle**2 + target.vocab_size * middle
        low, high = (middle, high) if count < target.params else (low, middle)
    return low


def _depths(target: Target, width: int) -> list[int]:
    """The depths at this width on both sides of the target, with one table and with two."""
    shallow, deeper = complete(target, width, 1), complete(target, width, 2)
    body, more = shallow.non_embedding_parameters(), deeper.non_embedding_parameters()
    depths = set()
    for tables in (1, 2):
        rest = target.params - tables * target.vocab_size * width - body
        below = min(max(1, 1 + math.floor(rest / (more - body))), _DEEPEST)
        depths |= {below, min(below + 1, _DEEPEST)}
    return sorted(depths)
