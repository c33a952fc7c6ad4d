"""Timing of several runs that take turns: other work on the machine takes from all alike."""

from __future__ import annotations

import time
from collections.abc import Callable


def best_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Shortest time of each run, taken in turns after a warm-up of each."""
    for run in runs.values():
        run()
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best
