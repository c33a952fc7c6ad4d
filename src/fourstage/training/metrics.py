"""Rows of numbers: gathered over steps, written as JSON lines, cut back on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fourstage.files import append_line, write_text


class Window:
    """Sums and counts since the last row.

    Attributes:
        tokens, seconds: of the steps in the window, for the rate.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self.tokens = 0
        self.seconds = 0.0

    def add(self, name: str, value: float, count: float = 1.0) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0.0) + count

    def means(self) -> dict[str, float]:
        return {name: self.sums[name] / (self.counts[name] or 1.0) for name in self.sums}

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Window:
        window = cls()
        vars(window).update(state)
        return window


class Rows:
    """A file of JSON lines, each with its `step`, in the order of the steps."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a row; the row as it is read back."""
        plain = {name: _plain(value) for name, value in row.items()}
        append_line(self.path, plain)
        return plain

    def cut_back(self, step: int) -> None:
        """Keeps the rows up to `step`; a line torn by a kill goes with the rest."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(line + "\n" for line in text.split("\n") if _step_of(line) <= step)
        if kept != text:
            write_text(self.path, kept)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a file written by `Rows`; none where there is no file."""
    if not path.exists():
        return []
    # Not splitlines(): a sampled text may hold characters that Python takes for line ends.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _plain(value: Any) -> Any:
    """A JSON value: tensors of one number become it, what is not finite becomes null."""
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def add_metrics(into: dict[str, list[Any]], metrics: Mapping[str, Iterable[Any]]) -> None:
    """Adds {name: (sum, count)} of a micro-batch to the step's; tensors stay on their device."""
    for name, (total, count) in metrics.items():
        held = into.setdefault(name, [0.0, 0.0])
        held[0] = held[0] + (total.detach() if isinstance(total, Tensor) else total)
        held[1] = held[1] + (count.detach() if isinstance(count, Tensor) else count)
