"""What goes wrong in reinforcement learning is said while it trains, as soon as it is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fourstage.reporting.alarms import Alarm, Lookout
from fourstage.training.metrics import read_rows


class SaidAlarms:
    """Says the alarms that the report marks, each once.

    Args:
        path: metrics.jsonl of the stage.
        say: prints a line.
    """

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self.say = path, say
        self._said: set[Alarm] = set()
        self._lookout = Lookout()
        self._last = math.inf

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Looks at a row that was just written.

        Steps rise from row to row: where one does not, the rows since were taken back (a rollback),
        and before the first one there may be those of an earlier process.
        """
        if row["step"] <= self._last:
            self.catch_up()
        else:
            self._look(row)
        self._last = row["step"]

    def catch_up(self) -> None:
        """Reads all rows, and says what was not said yet."""
        self._lookout = Lookout()
        for row in read_rows(self.path):
            self._look(row)

    def _look(self, row: Mapping[str, Any]) -> None:
        for alarm in self._lookout(row):
            if alarm not in self._said:
                self._said.add(alarm)
                self.say(f"rl: alarm at step {alarm.step:g}: {alarm.what}; {alarm.remedy}")
