"""What logging, watching, judging and drawing cost beside a training step, on one CPU thread.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--steps 200] [--log-every 10]

A model of about a million parameters trains on 768 tokens a step. Each part of the loop is timed in
the thread's own processor seconds, which other processes do not lengthen; the share is of the
update, over all steps. The prefetching thread is judged by the wall clock of runs that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourstage.data.batch import Batch, Example
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.randomness import numpy_generator
from fourstage.reporting.tables import print_table
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer

SHAPE = ModelConfig(
    vocab_size=860, width=128, layers=4, heads=4, kv_heads=4, mlp_width=384, context=256
)
PARTS = ("draw", "update", "judge", "count and log", "watch")


class Lines:
    """Documents of 48 tokens, each the last plus a constant: 16 of them a step."""

    depends_on_number_alone = True

    def batch(self, step: int) -> Batch:
        first, stride = numpy_generator(0, "overhead", step).integers(1, 860, (2, 16))
        return Batch.language(
            [Example((f + s * np.arange(49)) % 860) for f, s in zip(first, stride, strict=True)]
        )

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Timed:
    """Processor seconds of parts, those of parts within them taken out."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._within = 0.0

    def __call__(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **keywords: Any) -> Any:
            outside, self._within = self._within, 0.0
            started = time.thread_time()
            try:
                return function(*args, **keywords)
            finally:
                taken = time.thread_time() - started
                self.seconds[part] += taken - self._within
                self._within = outside + taken

        return timed


def trainer(folder: Path, arguments: argparse.Namespace, **more: Any) -> Trainer:
    settings = TrainSettings(
        steps=arguments.steps, learning_rate=1e-3, log_every=arguments.log_every, **more
    )
    model = Transformer(SHAPE).initialise(0)
    return Trainer(model, NextToken(), Lines(), settings, folder, say=lambda line: None)


def shares(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part over a run."""
    running, timed = trainer(folder, arguments), Timed()
    running.batches.batch = timed("draw", running.batches.batch)
    running.update.accepts = timed("judge", running.update.accepts)

    class TimedUpdate(type(running.update)):
        __call__ = timed("update", type(running.update).__call__)

    running.update.__class__ = TimedUpdate
    for name in ("_count", "_report"):
        setattr(running, name, timed("count and log", getattr(running, name)))
    for name in ("before", "after"):
        setattr(running.watch, name, timed("watch", getattr(running.watch, name)))
    running.train()
    return timed.seconds


def wall_seconds(folder: Path, arguments: argparse.Namespace, ahead: bool) -> float:
    running = trainer(folder, arguments, prefetch=ahead)
    started = time.perf_counter()
    running.train()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = shares(Path(folder) / "parts", arguments)
        ratios = []
        for number in range(arguments.rounds):
            ahead = wall_seconds(Path(folder) / f"ahead{number}", arguments, True)
            ratios.append(ahead / wall_seconds(Path(folder) / f"plain{number}", arguments, False))
    beside = sum(seconds[part] for part in ("judge", "count and log", "watch"))
    rows = [
        (part, 1e3 * taken / arguments.steps, f"{taken / seconds['update']:.2%}")
        for part, taken in [*seconds.items(), ("judge, count, log and watch", beside)]
    ]
    print_table(("part", "ms a step", "share of the update"), rows)
    print(f"a thread that draws ahead: {statistics.median(ratios):.3f} of the time without")


if __name__ == "__main__":
    main()
