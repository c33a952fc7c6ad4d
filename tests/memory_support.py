"""What torch's allocator hands out on the CPU while something runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch.profiler import ProfilerActivity, profile

from fourstage.data.batch import Batch, Example
from fourstage.model.config import ModelConfig

SHAPE = ModelConfig(
    vocab_size=860, width=64, layers=4, heads=4, kv_heads=4, mlp_width=176, context=128
)
RAGGED = (50, 15, 8, 100, 128, 40, 45, 97)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes held at a time by what `call` allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        call()
    kineto = measured.profiler.kineto_results
    events = [e for e in kineto.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def documents(config: ModelConfig, lengths: tuple[int, ...]) -> Batch:
    """Random documents of `lengths` cells."""
    draw = np.random.default_rng(0)
    return Batch.language(
        [Example(draw.integers(0, config.vocab_size, length + 1)) for length in lengths]
    )
