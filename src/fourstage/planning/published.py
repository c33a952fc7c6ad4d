"""Published runs and laws that the rules pass through, and that plans are checked against.

Sources: Brown et al., *Language Models are Few-Shot Learners* (GPT-3), tables 2.1 and D.1; Touvron
et al., *LLaMA*, tables 2 and 15, and *Llama 2*, table 2; Hoffmann et al., *Training Compute-Optimal
Large Language Models* (Chinchilla), table 3; Ouyang et al., *InstructGPT*.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PublishedRun:
    """One training run as its paper reports it; `flops` and `gpu_hours` where it does."""

    model: str
    params: float
    layers: int
    width: int
    heads: int
    mlp_width: int
    vocab_size: int
    context: int
    tokens: float
    batch_tokens: float
    learning_rate: float
    flops: float | None = None
    accelerator: str | None = None
    gpu_hours: float | None = None


RUNS = (
    PublishedRun(
        "GPT-3 Small", 125e6, 12, 768, 12, 3072, 50257, 2048, 300e9, 0.5e6, 6.0e-4, 2.25e20
    ),
    PublishedRun(
        "GPT-3 Medium", 356e6, 24, 1024, 16, 4096, 50257, 2048, 300e9, 0.5e6, 3.0e-4, 6.41e20
    ),
    PublishedRun(
        "GPT-3 Large", 760e6, 24, 1536, 16, 6144, 50257, 2048, 300e9, 0.5e6, 2.5e-4, 1.37e21
    ),
    PublishedRun(
        "GPT-3 2.7B", 2.65e9, 32, 2560, 32, 10240, 50257, 2048, 300e9, 1e6, 1.6e-4, 4.77e21
    ),
    PublishedRun(
        "GPT-3 13B", 12.85e9, 40, 5120, 40, 20480, 50257, 2048, 300e9, 2e6, 1.0e-4, 2.31e22
    ),
    PublishedRun(
        "GPT-3 175B", 174.6e9, 96, 12288, 96, 49152, 50257, 2048, 300e9, 3.2e6, 0.6e-4, 3.14e23,
    ),
    PublishedRun(
        "LLaMA-7B", 6738415616, 32, 4096, 32, 11008, 32000, 2048, 1.0e12, 4e6, 3.0e-4,
        accelerator="A100", gpu_hours=82432,
    ),
    PublishedRun(
        "LLaMA-33B", 32528943616, 60, 6656, 52, 17920, 32000, 2048, 1.4e12, 4e6, 1.5e-4,
        accelerator="A100", gpu_hours=530432,
    ),
    PublishedRun(
        "LLaMA-65B", 65285660672, 80, 8192, 64, 22016, 32000, 2048, 1.4e12, 4e6, 1.5e-4,
        accelerator="A100", gpu_hours=1022362,
    ),
    PublishedRun(
        "Llama-2-7B", 6738415616, 32, 4096, 32, 11008, 32000, 4096, 2.0e12, 4e6, 3.0e-4,
        accelerator="A100", gpu_hours=184320,
    ),
    PublishedRun(
        "Llama-2-70B", 68976648192, 80, 8192, 64, 28672, 32000, 4096, 2.0e12, 4e6, 1.5e-4,
        accelerator="A100", gpu_hours=1720320,
    ),
)  # fmt: skip

# parameters -> compute-optimal tokens (Chinchilla, table 3); 20 a parameter below its first point.
CHINCHILLA: Points = (
    (400e6, 8.0e9),
    (1e9, 20.2e9),
    (10e9, 205.1e9),
    (67e9, 1.5e12),
    (175e9, 3.7e12),
    (1e12, 21.2e12),
)

# parameters -> peak learning rate. The GPT-3 points, and below them what sweeps of whole runs on
# the embedded world were best at (docs/results.md).
LEARNING_RATE: Points = (
    (0.2e6, 8e-3),
    (1e6, 3e-3),
    *((run.params, run.learning_rate) for run in RUNS if run.model.startswith("GPT-3")),
)

# The same under Muon: sweeps on the embedded world (docs/results.md), then what nanochat's 0.02,
# which multiplies max(1, rows / cols)^0.5, comes to in matrices of widths 768 and 1,280.
MUON_RATE: Points = ((0.2e6, 3e-2), (0.8e6, 1.5e-2), (124e6, 3.6e-3), (561e6, 2.8e-3))

# parameters -> batch in tokens. GPT-3 took 0.5M to 3.2M, LLaMA 4M from 7B on: where they differ the
# geometric middle. Small runs learn best with many small steps (1k-2k tokens at 1M parameters).
BATCH_TOKENS: Points = (
    (0.8e6, 1536),
    (125e6, 0.5e6),
    (760e6, 0.5e6),
    (2.65e9, 1e6),
    (6.7e9, 2.4e6),
    (12.85e9, 2.8e6),
    (65e9, 3.6e6),
    (175e9, 3.6e6),
)

# Fine-tuning rates: 2e-3, 4e-4 and 4e-4 kept the features of a 1M-parameter model; InstructGPT took
# 9.65e-6 for SFT at 1.3B and 6B and 9e-6 for its 6B reward model; PPO on Pythia-1B took 3e-6.
SFT_RATE: Points = ((1e6, 2e-3), (1.3e9, 9.65e-6), (6e9, 9.65e-6))
REWARD_RATE: Points = ((1e6, 4e-4), (6e9, 9e-6))
RL_RATE: Points = ((1e6, 4e-4), (1e9, 3e-6))


def through(points: Points, x: float, *, beyond: bool = True) -> float:
    """The value at `x` of straight lines through `points` on log-log axes.

    Left of the first point the first line goes on; right of the last one the last line does, or the
    last value stays with `beyond=False`.
    """
    xs = [point[0] for point in points]
    index = min(max(bisect.bisect_right(xs, x), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    if x >= xs[-1] and not beyond:
        return y1
    y = math.exp(math.log(y0) + math.log(y1 / y0) * math.log(x / x0) / math.log(x1 / x0))
    # Rounding must not carry a value past the point it nears: the curve would turn there.
    return min(max(y, min(y0, y1)), max(y0, y1)) if x0 <= x <= x1 else y


def compute_optimal_tokens(params: float) -> float:
    """Tokens that use a training budget best at this size (Chinchilla, table 3)."""
    if params <= CHINCHILLA[0][0]:
        return params * CHINCHILLA[0][1] / CHINCHILLA[0][0]
    return through(CHINCHILLA, params)


def compute_optimal_params(flops: float) -> float:
    """Parameters that use `flops` of training best: 6 N D(N) = flops, by bisection."""
    low, high = 1e3, 1e14
    for _ in range(200):
        middle = math.sqrt(low * high)
        if 6 * middle * compute_optimal_tokens(middle) < flops:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
