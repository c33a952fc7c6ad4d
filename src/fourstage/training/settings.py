"""Everything the trainer is told: sizes, rates and how often to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fourstage.errors import InputError, nearest
from fourstage.training.schedule import SCHEDULES

ON_SPIKE = ("warn", "skip", "rollback", "lower_rate")
OPTIMISERS = ("adamw", "muon", "adamw8bit")


@dataclass(frozen=True)
class TrainSettings:
    """Attributes whose meaning is not in their name:

    Attributes:
        final_fraction: learning rate at the end, as a share of `learning_rate`.
        decay_fraction: share of the steps that the decay of `wsd` takes, at the end.
        optimiser: `adamw`, `muon` (AdamW for what is no matrix inside the model) or `adamw8bit`.
        width_ratio: width over the width that the learning rate is for; 1 is no scaling by width.
        rate_multipliers: prefix of parameter names -> factor on their learning rate
            (`{"critic.": 2.0}`); the longest prefix that fits counts.
        clip: largest gradient norm; 0 does not clip.
        micro_batch_tokens: cells of one forward pass; None takes the batch whole.
        log_every, validate_every, sample_every, checkpoint_every: steps between; 0 is never
            (`log_every` at least 1). The last step does all that is not never.
        checkpoint_seconds: also checkpoint when so many seconds have passed since the last; 0 off.
        keep_checkpoints: how many of the newest are kept, beside the best.
        ema: decay of the moving average of the weights that training ends with; 0 is off.
        most_skipped: steps in a row that may be skipped; the run stops after so many that are not
            finite, and goes on with the next after so many that spike.
        on_spike: `warn` says so; `skip` leaves the update out; `rollback` returns `rollback_steps`
            and goes on from there with later batches, at most `most_rollbacks` times; `lower_rate`
            multiplies the learning rate by `lowered_rate` from there on.
        spike_deviations: how far above the median of the last `spike_window` steps a loss or
            gradient norm is a spike, in robust standard deviations.
        watch_every: steps between looks at activations, logits, updates; None is twice `log_every`.
        prefetch: whether a thread draws the next batch ahead; None does on CUDA.
        recompute: whether blocks are computed again in the backward pass: auto, off or block.
        compile: whether blocks are compiled: auto (on CUDA), on or off.
        memory: share of the free memory that a step may take.
        tune: whether the micro-batch is tried, and made smaller where it does not fit.
        workers: copies of the model that threads of a CPU work with, each on its part of a step.

    Raises:
        InputError: a value is out of range.
    """

    steps: int
    learning_rate: float
    optimiser: str = "adamw"
    width_ratio: float = 1.0
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
    on_spike: str = "warn"
    spike_deviations: float = 6.0
    spike_window: int = 128
    rollback_steps: int = 100
    most_rollbacks: int = 3
    lowered_rate: float = 0.5
    watch_every: int | None = None
    prefetch: bool | None = None
    recompute: str = "auto"
    compile: str = "auto"
    memory: float = 0.8
    tune: bool = True
    workers: int = 1

    def __post_init__(self) -> None:
        faults = []
        if self.schedule not in SCHEDULES:
            hint = nearest(self.schedule, SCHEDULES) or f": write one of {', '.join(SCHEDULES)}"
            faults.append(f"schedule={self.schedule!r} is not known{hint}")
        if self.optimiser not in OPTIMISERS:
            hint = nearest(self.optimiser, OPTIMISERS) or f": write one of {', '.join(OPTIMISERS)}"
            faults.append(f"optimiser={self.optimiser!r} is not known{hint}")
        if self.on_spike not in ON_SPIKE:
            hint = nearest(self.on_spike, ON_SPIKE) or f": write one of {', '.join(ON_SPIKE)}"
            faults.append(f"on_spike={self.on_spike!r} is not known{hint}")
        if self.spike_window < 8 or self.rollback_steps < 1:
            faults.append("spike_window must be 8 or more, and rollback_steps 1 or more")
        if not 0 < self.lowered_rate < 1:
            faults.append(f"lowered_rate={self.lowered_rate} is out of range: write 0.5")
        if self.steps < 0:
            faults.append(f"steps={self.steps} is negative: write 1 or more")
        if not 0 <= self.ema < 1:
            faults.append(f"ema={self.ema} is out of range: write 0 (off) or a value below 1")
        if self.log_every < 1 or self.keep_checkpoints < 1:
            faults.append("log_every and keep_checkpoints must be 1 or more")
        if faults:
            raise InputError(*faults)
