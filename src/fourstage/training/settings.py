"""Everything the trainer is told: sizes, rates and how often to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fourstage.errors import InputError, nearest
from fourstage.training.schedule import SCHEDULES


@dataclass(frozen=True)
class TrainSettings:
    """Attributes whose meaning is not in their name:

    Attributes:
        final_fraction: learning rate at the end, as a share of `learning_rate`.
        decay_fraction: share of the steps that the decay of `wsd` takes, at the end.
        rate_multipliers: prefix of parameter names -> factor on their learning rate
            (`{"critic.": 2.0}`); the longest prefix that fits counts.
        clip: largest gradient norm; 0 does not clip.
        micro_batch_tokens: cells of one forward pass; None takes the batch whole.
        log_every, validate_every, sample_every, checkpoint_every: steps between; 0 is never
            (`log_every` at least 1). The last step does all that is not never.
        checkpoint_seconds: also checkpoint when so many seconds have passed since the last; 0 off.
        keep_checkpoints: how many of the newest are kept, beside the best.
        ema: decay of the moving average of the weights that training ends with; 0 is off.
        most_skipped: steps in a row that may be skipped for not being finite.

    Raises:
        InputError: a value is out of range.
    """

    steps: int
    learning_rate: float
    schedule: str = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    rate_multipliers: Mapping[str, float] = field(default_factory=dict)
    micro_batch_tokens: int | None = None
    log_every: int = 10
    validate_every: int = 0
    sample_every: int = 0
    checkpoint_every: int = 0
    checkpoint_seconds: float = 0.0
    keep_checkpoints: int = 2
    ema: float = 0.0
    seed: int = 0
    most_skipped: int = 5

    def __post_init__(self) -> None:
        faults = []
        if self.schedule not in SCHEDULES:
            hint = nearest(self.schedule, SCHEDULES) or f": write one of {', '.join(SCHEDULES)}"
            faults.append(f"schedule={self.schedule!r} is not known{hint}")
        if self.steps < 0:
            faults.append(f"steps={self.steps} is negative: write 1 or more")
        if not 0 <= self.ema < 1:
            faults.append(f"ema={self.ema} is out of range: write 0 (off) or a value below 1")
        if self.log_every < 1 or self.keep_checkpoints < 1:
            faults.append("log_every and keep_checkpoints must be 1 or more")
        if faults:
            raise InputError(*faults)
