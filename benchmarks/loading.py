"""What share of training is spent on loading batches, measured inside a real run.

    python benchmarks/loading.py [RECIPE] [key=value ...]

Trains the first stage of a recipe (smoke unless said otherwise) in a folder of its own, with a
clock around every batch that is asked for.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from fourstage.data.mixed import MixedSource
from fourstage.data.sources import DocumentSource
from fourstage.pipeline import run
from fourstage.recipe import load


class Clock:
    """Times every call of a source's `batch`."""

    def __init__(self) -> None:
        self.seconds, self.batches = 0.0, 0

    def around(self, source: type) -> None:
        batch = source.batch

        def timed(own, step: int):
            start = time.perf_counter()
            found = batch(own, step)
            self.seconds += time.perf_counter() - start
            self.batches += 1
            return found

        source.batch = timed


def main() -> None:
    recipe, *overrides = sys.argv[1:] or ["smoke"]
    clock = Clock()
    for source in (DocumentSource, MixedSource):
        clock.around(source)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(recipe, overrides)
        run(loaded, Path(folder), only="pretrain")
        rows = Path(folder, "pretrain", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        results = json.loads(Path(folder, "pretrain", "results.json").read_text(encoding="utf-8"))
    steps = int(results["metrics"]["steps"])
    rate = json.loads(rows[-1])["tokens_per_second"]
    tokens = results["tokens"] / steps
    trained = results["tokens"] / rate
    print(f"{steps} steps of {tokens:.0f} tokens, {1e3 * trained / steps:.1f} ms each")
    print(f"{1e3 * clock.seconds / clock.batches:.3f} ms a batch: {clock.seconds / trained:.3%}")


if __name__ == "__main__":
    main()
