"""What a trainer has counted, and what training took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Best:
    """The step with the lowest validation loss so far."""

    step: int
    value: float


@dataclass
class Counts:
    """What has been counted so far."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass
class TrainResult:
    """What training took; the seconds are the stage's wall clock, summed over resumptions."""

    steps: int
    tokens: int
    seconds: float
    flops: float
    best: Best | None
    skipped: int
