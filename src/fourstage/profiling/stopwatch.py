"""Time by named sections that may lie within one another; each second counts once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

REST = "rest"


class Stopwatch:
    """The own time of sections: what lies within another is taken from it.

    Whatever is within no section is `rest`, so that the parts sum up to the whole. Other threads
    than the one that started it are not counted: what they do is done beside.

    Args:
        wait: called before each look at the clock, to wait for what the device still computes.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None):
        self.seconds: dict[str, float] = {}
        self._wait = wait
        self._open: list[str] = []
        self._thread = 0
        self._since = 0.0

    @property
    def current(self) -> str | None:
        """The innermost section of the thread that is timed; None elsewhere and while stopped."""
        here = self._open and threading.get_ident() == self._thread
        return self._open[-1] if here else None

    def start(self) -> None:
        self._thread = threading.get_ident()
        self._open = [REST]
        self._wait()
        self._since = time.perf_counter()

    def stop(self) -> None:
        self._count()
        self._open = []

    @contextmanager
    def section(self, name: str) -> Generator[None]:
        """Counts what is within under `name`; nothing while stopped."""
        depth = self.enter(name)
        try:
            yield
        finally:
            self.leave(depth)

    def enter(self, name: str) -> int:
        """Opens a section; returns what `leave` takes."""
        if self.current is None:
            return 0
        self._count()
        self._open.append(name)
        return len(self._open) - 1

    def leave(self, depth: int) -> None:
        """Closes the section, and those within it that an exception left open."""
        if depth and self.current is not None:
            self._count()
            del self._open[depth:]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def _count(self) -> None:
        self._wait()
        now = time.perf_counter()
        name = self._open[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
