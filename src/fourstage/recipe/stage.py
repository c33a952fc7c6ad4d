"""What the sections of all four stages share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fourstage.recipe.adapter import Adapter, Names
from fourstage.recipe.data import Count, Fraction, NonNegative, Positive, PositiveInt, Section
from fourstage.recipe.numbers import Real, Seconds, Whole

OpenFraction = Annotated[Real, Field(ge=0, lt=1)]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
OptimiserName = Literal["adamw", "muon", "adamw8bit"]
OnSpike = Literal["warn", "skip", "rollback", "lower_rate"]


class Stage(Section):
    """What every stage shares.

    `tokens`, `epochs` and `steps` say how long it trains: one is enough, and where several are
    given the first to be reached ends the stage. Counts named `..._every` are in steps; 0 is
    never, as it is for `clip`, `ema` and `checkpoint_seconds`.

    With `adapter` low-rank updates are trained beside a frozen model; `freeze` names parameters
    that are not trained, such as `model.embed_tokens.*`.

    `on_spike` is what is done when the loss or the gradient norm is more than `spike_deviations`
    robust deviations above the median of the last `spike_window` steps.
    """

    source_model: str | None = Field(default=None, alias="from")
    adapter: Adapter | None = None
    freeze: Names | None = None
    tokens: PositiveInt | None = None
    epochs: Positive | None = None
    steps: PositiveInt | None = None
    batch_tokens: PositiveInt | None = None
    micro_batch_tokens: PositiveInt | None = None
    optimiser: OptimiserName | None = None
    learning_rate: Annotated[Real, Field(gt=0, le=1)] | None = None
    schedule: Schedule | None = None
    warmup_steps: Count | None = None
    final_fraction: Fraction | None = None
    decay_fraction: Fraction = 0.2
    weight_decay: NonNegative | None = None
    beta1: OpenFraction = 0.9
    beta2: OpenFraction = 0.95
    eps: Positive = 1e-8
    clip: NonNegative = 1.0
    ema: OpenFraction = 0.0
    validate_every: Count | None = None
    sample_every: Count | None = None
    checkpoint_every: Count | None = None
    checkpoint_seconds: Annotated[Seconds, Field(ge=0)] = 60.0
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt | None = None
    watch_every: Count | None = None
    on_spike: OnSpike = "warn"
    spike_deviations: Positive = 6.0
    spike_window: Annotated[Whole, Field(ge=8)] = 128
    rollback_steps: PositiveInt = 100
    most_rollbacks: PositiveInt = 3
    lowered_rate: Annotated[Real, Field(gt=0, lt=1)] = 0.5
