"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourstage.training.settings import TrainSettings

SCHEDULES = ("cosine", "linear", "wsd", "constant")


def rate_factor(
    step: int,
    steps: int,
    *,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    final_fraction: float = 0.1,
    decay_fraction: float = 0.2,
) -> float:
    """Share of the peak learning rate that the update of `step` (from 0) uses.

    Warm-up rises linearly and reaches the peak at its last step. The decay then would reach
    `final_fraction` at `step == steps`, one past the last update, so that no update has rate 0.
    `wsd` (warm-up, stable, decay: Hu et al., MiniCPM, 2024) holds the peak and decays by
    `1 - sqrt(progress)` over the last `decay_fraction` of the steps (Hägele et al., 2024).

    Raises:
        ValueError: the schedule is not known.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    start = warmup_steps
    if schedule == "wsd":
        start = max(warmup_steps, steps - round(decay_fraction * steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    if schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    elif schedule == "linear":
        left = 1 - progress
    elif schedule == "wsd":
        left = 1 - math.sqrt(progress)
    else:
        raise ValueError(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}")
    return final_fraction + (1 - final_fraction) * left


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of the update of `step`, before any multiplier of a module."""
    return settings.learning_rate * rate_factor(
        step,
        settings.steps,
        schedule=settings.schedule,
        warmup_steps=settings.warmup_steps,
        final_fraction=settings.final_fraction,
        decay_fraction=settings.decay_fraction,
    )
