"""Accuracy of reward models over the number of comparisons, from a finished run's chat model.

    python benchmarks/reward_curve.py RUN [--comparisons 1000 2000 4000 ...] [--seeds 1]
        [--out FOLDER] [--json FILE] [--recipe KEY=VALUE ...]

Each point is a run of its own that starts from `RUN/sft/model` and trains one epoch of so many
comparisons, with the run's own recipe but for what is given. Finished points are kept: called again
with more of them, only those are trained. Held-out pairs are the same for all points of a seed.

Beside accuracy stands what it rests on: by kind of instruction the share of right answers put over
wrong ones, next to how often the chat model's own likelihoods do that, and how often it does that
kind. What the chat model knows and the reward model does not is still to be found by training; what
neither knows no number of comparisons will tell.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.files import read_json
from fourstage.pipeline import run
from fourstage.recipe import Recipe, load
from fourstage.reporting.numbers import Number
from fourstage.reporting.tables import print_table

MEASURES = (
    "pair_accuracy",
    "right_wrong_accuracy",
    "both_right_accuracy",
    "pair_accuracy_shuffled_prompts",
    "calibration_error",
    "score_length_beyond_gold",
)
# Below this a kind's right and wrong answers are not told apart; chance is 0.5.
_BLIND = 0.65
# From here on the chat model's likelihoods tell them apart.
_KNOWN = 0.8


@dataclass(frozen=True)
class Point:
    """A reward model of the curve, and what it was measured by."""

    comparisons: int
    seed: int
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    seconds: float

    @classmethod
    def of(cls, folder: Path, comparisons: int, seed: int) -> Point:
        found = read_json(folder / "reward" / "results.json")
        seconds = float(found["seconds"])
        return cls(comparisons, seed, found["metrics"], found["intervals"], seconds)

    def number(self, name: str) -> Number | None:
        if name not in self.metrics:
            return None
        low, high = self.intervals.get(name, (None, None))
        return Number(self.metrics[name], low, high)

    def of_ceiling(self) -> float | None:
        ceiling = self.metrics.get("pair_accuracy_ceiling")
        return self.metrics["pair_accuracy"] / ceiling if ceiling else None

    def by_kind(self, name: str) -> dict[str, float]:
        start = f"{name}/"
        return {k.removeprefix(start): v for k, v in self.metrics.items() if k.startswith(start)}


def recipe_of(source: Path, comparisons: int, seed: int, overrides: Sequence[str]) -> Recipe:
    """The run's recipe for one epoch of so many comparisons; the first seed is the run's own."""
    base = load(str(source / "recipe.yaml"), list(overrides))
    steps = math.ceil(comparisons / (base.reward.pairs_per_step or 1))
    told = [
        f"data.comparisons={comparisons}",
        f"reward.from={source / 'sft' / 'model'}",
        f"reward.steps={steps}",
        f"seed={base.seed + seed}",
        *overrides,
    ]
    return load(str(source / "recipe.yaml"), told)


def train(
    source: Path, out: Path, counts: Sequence[int], seeds: int, overrides: Sequence[str]
) -> list[Point]:
    points = []
    for seed in range(seeds):
        for comparisons in counts:
            folder = out / f"{comparisons}-{seed}"
            run(recipe_of(source, comparisons, seed, overrides), folder, only="reward")
            points.append(Point.of(folder, comparisons, seed))
    return points


def slope(points: Sequence[Point]) -> float | None:
    """By which power of the number of comparisons the distance from the ceiling falls."""
    known = [
        (math.log(point.comparisons), math.log(gap))
        for point in points
        if (ceiling := point.metrics.get("pair_accuracy_ceiling"))
        and (gap := ceiling - point.metrics["pair_accuracy"]) > 0
    ]
    if len({x for x, _ in known}) < 2:
        return None
    return float(np.polyfit(*zip(*known, strict=True), 1)[0])


def limits(source: Path, points: Sequence[Point]) -> list[list[Any]]:
    """[kind, right over wrong with fewest and most comparisons, by the chat model's likelihoods,
    done by the chat model, what limits it], the worst first."""
    path = source / "sft" / "results.json"
    done = Point(0, 0, read_json(path)["metrics"], {}, 0.0).by_kind("task_success")
    ordered = sorted(points, key=lambda point: point.comparisons)
    first, last = (ordered[i].by_kind("right_wrong_accuracy") for i in (0, -1))
    known = ordered[-1].by_kind("likelihood_right_wrong_accuracy")
    rows = []
    for kind, at in sorted(last.items(), key=lambda item: item[1]):
        limit = ""
        if at < _BLIND:
            limit = "not found yet" if known.get(kind, 0) > _KNOWN else "the chat model"
        rows.append([kind, first.get(kind), at, known.get(kind), done.get(kind), limit])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run, of which sft/model is taken")
    parser.add_argument("--comparisons", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keeps the reward models; else RUN-curve")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--recipe", nargs="*", default=[], help="overrides: reward.centring=0")
    given = parser.parse_args()

    source = given.run.resolve()
    out = given.out or source.with_name(f"{source.name}-curve")
    points = train(source, out, given.comparisons, given.seeds, given.recipe)
    header = ["comparisons", "seed", "of ceiling", *MEASURES, "seconds"]
    rows = [
        [
            point.comparisons,
            point.seed,
            point.of_ceiling(),
            *(point.number(name) for name in MEASURES),
            point.seconds,
        ]
        for point in points
    ]
    print_table(header, rows, f"Reward models from {source.name}")
    power = slope(points)
    if power is not None:
        print(f"the distance from the ceiling goes with comparisons ** {power:.2f}")
    kinds = ["kind", "fewest", "most", "by likelihood", "done by the chat model", "limit"]
    print_table(kinds, limits(source, points), "Right over wrong, by kind")
    if given.json:
        content = {
            "points": [{**vars(point)} for point in points],
            "slope": power,
            "limits": limits(source, points),
        }
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
