"""Wall-clock seconds of a stage, summed over the processes that worked on it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from fourstage.files import read_json, write_json

_WRITE_SECONDS = 1.0


class StageClock:
    """Counts on from what earlier processes left in `seconds.json` of the stage's folder.

    What a SIGKILL loses is the time since the last `write`, about a logging step.
    """

    def __init__(self, folder: Path):
        self._path = folder / "seconds.json"
        self._before = 0.0
        # A torn or foreign file only costs the seconds counted so far.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self._before = float(read_json(self._path)["seconds"])
        self._start = self._written = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def write(self, now: bool = False) -> None:
        """Saves the count, at most once a second unless `now`."""
        if now or time.monotonic() - self._written >= _WRITE_SECONDS:
            write_json(self._path, {"seconds": round(self.seconds, 3)})
            self._written = time.monotonic()
