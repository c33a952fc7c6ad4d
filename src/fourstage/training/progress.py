"""How far training is: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.25


def clock_time(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Shows step, loss, tokens/s and time left of one stage.

    Args:
        label: name of the stage.
        done: steps that earlier processes took; they do not count for the speed.
        floor: the best loss that exists, shown beside the loss.
        quiet: shows nothing (every process but the first).
    """

    def __init__(
        self,
        label: str,
        steps: int,
        done: int,
        say: Callable[[str], None],
        floor: float | None = None,
        quiet: bool = False,
    ):
        self.label, self.steps, self.done = label, steps, done
        self.say, self.quiet = say, quiet
        self.floor = "" if floor is None else f" (floor {floor:.3f})"
        self._start = self._shown = time.monotonic()
        self._tokens = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int, loss: float, tokens: int) -> None:
        """After each step; costs a look at the clock unless something is due to be shown."""
        self._tokens += tokens
        now = time.monotonic()
        every = _BAR_SECONDS if self._bar is not None else _LINE_SECONDS
        if self.quiet or (now - self._shown < every and step < self.steps):
            return
        self._shown = now
        elapsed = max(1e-9, now - self._start)
        left = elapsed / max(1, step - self.done) * (self.steps - step)
        speed = f"{self._tokens / elapsed:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=step,
                loss=f"loss {loss:.4f}{self.floor}",
                speed=speed,
                left=f"{clock_time(left)} left",
            )
        else:
            self.say(
                f"{self.label}  step {step:,}/{self.steps:,}  loss {loss:.4f}{self.floor}"
                f"  {speed}  {clock_time(left)} left"
            )

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}  {task.fields[speed]}  {task.fields[left]}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            self.label, total=self.steps, completed=self.done, loss="", speed="", left=""
        )
