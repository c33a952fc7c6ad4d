"""Runs of every layout and optimiser, killed at random moments, end with the same bytes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from fourstage.files import sha256_file
from parallel_support import (
    kill_all,
    killed_together,
    launched,
    lines,
    run_together,
)
from pipeline_support import STAGES, left_behind, recipe_file, rows, weights

# Large enough for a byte a moment.
WIDE = {"width": 64, "mlp_width": 96}
CASES = {
    "muon": {"model": WIDE, "settings": {"optimiser": "muon"}},
    "8-bit AdamW": {"model": WIDE, "settings": {"optimiser": "adamw8bit"}},
    "replicas": {"stage": "sft", "replicate": 2},
    "shards": {"stage": "rl", "shard": 2},
    "shared products": {"stage": "reward", "tensor": 2},
    "sharded muon": {"model": WIDE, "shard": 2, "settings": {"optimiser": "muon"}},
    "sharded 8-bit AdamW": {"model": WIDE, "shard": 2, "settings": {"optimiser": "adamw8bit"}},
    "replicas of shards": {"replicate": 2, "shard": 2},
    "shards of shared products": {"stage": "sft", "shard": 2, "tensor": 2},
}
LAYOUTS = {
    "one process": [],
    "replicas": ["parallel.replicate=2"],
    "shards": ["parallel.shard=2"],
    "shared products": ["parallel.tensor=2"],
    "sequence": ["parallel.tensor=2", "parallel.sequence=true"],
    "replicas of shards": ["parallel.replicate=2", "parallel.shard=2"],
    "shards of shared products": ["parallel.shard=2", "parallel.tensor=2"],
    "muon": ["parallel.shard=2", *(f"{stage}.optimiser=muon" for stage in STAGES)],
    "8-bit AdamW": ["parallel.shard=2", *(f"{stage}.optimiser=adamw8bit" for stage in STAGES)],
}


def processes(sizes: dict[str, int]) -> int:
    return sizes.get("replicate", 1) * sizes.get("shard", 1) * sizes.get("tensor", 1)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """The folder of all cases, done by one process that starts all others, and its count."""
    folder = tmp_path_factory.mktemp("killed")
    cases = {name: (processes(case), case) for name, case in CASES.items()}
    return folder, killed_together("parallel_cases:trained", folder, cases)


@pytest.mark.parametrize("case", CASES)
def test_a_stage_that_is_killed_ends_with_the_same_bytes(killed, case):
    folder, struck = killed
    ends = [folder / case / name / "final.safetensors" for name in ("undisturbed", "killed")]
    assert struck[case] and sha256_file(ends[0]) == sha256_file(ends[1])
    assert not list((folder / case / "killed" / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_that_is_killed_ends_with_the_same_bytes(tmp_path, layout):
    """FOURSTAGE_KILLS kills of each layout; FOURSTAGE_KILL_SEED repeats their moments."""
    overrides, run = LAYOUTS[layout], tmp_path / "run"
    sizes = dict(each.removeprefix("parallel.").split("=") for each in overrides)
    count = processes({k: int(v) for k, v in sizes.items() if v.isdigit()})
    recipe = recipe_file(tmp_path)
    run_together(recipe, tmp_path / "undisturbed", count, overrides)
    struck = _kill_often(recipe, run, count, overrides, lines(tmp_path / "undisturbed"))
    print(f"{struck} kills struck")
    assert struck
    run_together(recipe, run, count, overrides)
    assert weights(run) == weights(tmp_path / "undisturbed")
    assert left_behind(run) == []
    for stage in STAGES:
        one, other = rows(run, stage), rows(tmp_path / "undisturbed", stage)
        assert [row.get("loss") for row in one] == [row.get("loss") for row in other]


def _kill_often(recipe: Path, run: Path, count: int, overrides: list[str], total: int) -> int:
    """How many of the kills, spread over a run of `total` rows, struck."""
    kills = int(os.environ.get("FOURSTAGE_KILLS", "4"))
    seed = int(os.environ.get("FOURSTAGE_KILL_SEED", random.randrange(10**6)))
    print(f"FOURSTAGE_KILL_SEED={seed}")
    draw, struck = random.Random(seed), 0
    for moment in sorted(draw.sample(range(1, total), kills)):
        process = launched(recipe, run, count, overrides)
        while lines(run) < moment and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        struck += process.poll() is None
        kill_all(process)
    return struck
