"""What a stage writes as it trains: rows of numbers and events, what is watched, samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourstage.training.counts import Counts
from fourstage.training.metrics import Rows, Window


class Journal:
    """metrics.jsonl, watch.jsonl and samples.jsonl of a stage's folder.

    Args:
        writes: whether this process is the one that writes.

    Attributes:
        reader: is given each row of numbers as soon as it is written.
    """

    def __init__(self, folder: Path, writes: bool):
        self.rows = Rows(folder / "metrics.jsonl")
        self.layers = Rows(folder / "watch.jsonl")
        self.samples = Rows(folder / "samples.jsonl")
        self.writes = writes
        self.reader: Callable[[Mapping[str, Any]], None] | None = None

    def row(
        self, counts: Counts, window: Window, learning_rate: float, *more: Mapping[str, Any]
    ) -> None:
        """The means of a window, and what else was measured at the step."""
        if not self.writes:
            return
        means = window.means()
        row = {
            "step": counts.step,
            "loss": means.pop("loss", None),
            "learning_rate": learning_rate,
            "tokens": counts.tokens,
            "tokens_per_second": round(window.tokens_per_second, 1),
            "gradient_norm": means.pop("gradient_norm", None),
            "skipped_steps": counts.skipped,
        }
        for numbers in (means, *more):
            row |= numbers
        written = self.rows.append(row)
        if self.reader is not None:
            self.reader(written)

    def event(self, row: Mapping[str, Any], counts: Counts) -> None:
        """What happened in the making of a step (`training.events`)."""
        if self.writes:
            self.rows.append({**row, "tokens": counts.tokens})

    def watched(self, step: int, layers: Mapping[str, Any]) -> None:
        if self.writes:
            self.layers.append({"step": step, **layers})

    def sampled(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows if self.writes else ():
            self.samples.append({"step": step, **row})

    def cut_back(self, step: int) -> None:
        """Takes back what was written after a step; before the first one nothing was."""
        for rows in (self.rows, self.layers, self.samples) if self.writes else ():
            rows.cut_back(step or -1)
