"""Whole runs under torchrun: what one process finds, and the same bits after any kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourstage.files import read_json
from parallel_support import environment
from pipeline_support import STAGES, left_behind, recipe_file, results, rows, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LAYOUTS = {"shards": ["parallel.shard=2"], "tensor": ["parallel.tensor=2"],
           "sequence": ["parallel.tensor=2", "parallel.sequence=true"],
           "replicas": ["parallel.replicate=2"]}  # fmt: skip


def _started(recipe: Path, out: Path, processes: int, overrides: list[str]) -> subprocess.Popen:
    """The run in a session of its own, so that all of its processes can be killed at once."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    asked = ["-m", "fourstage", "run", recipe, "--out", out, "compute.workers=1", *overrides]
    return subprocess.Popen(
        [sys.executable, *(launch if processes > 1 else []), *asked],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def _run(recipe: Path, out: Path, processes: int, overrides: list[str]) -> str:
    process = _started(recipe, out, processes, overrides)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-4000:]
    return said


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_four_stages_learn_what_one_process_learns(tmp_path, layout):
    recipe = recipe_file(tmp_path)
    _run(recipe, tmp_path / "one", 1, [])
    said = _run(recipe, tmp_path / "two", 2, LAYOUTS[layout])
    assert "layout: " in said
    for stage in STAGES:
        one, two = (rows(tmp_path / name, stage) for name in ("one", "two"))
        assert len(one) == len(two)
        for here, there in zip(two, one, strict=True):
            for name in ("loss", "reward", "length", "validation_loss"):
                if there.get(name) is not None:
                    assert here[name] == pytest.approx(there[name], rel=1e-4), (stage, name)
        # A token that is drawn on the edge falls either way; what is measured stays near.
        assert (
            results(tmp_path / "two", stage)["tokens"] == results(tmp_path / "one", stage)["tokens"]
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_random_moments_a_layout_ends_with_the_same_bytes(tmp_path, layout):
    recipe, seed = recipe_file(tmp_path), random.randrange(10**6)
    kills = int(os.environ.get("FOURSTAGE_KILLS", "4"))
    print(f"seed of the moments: {seed}")
    draw, run = random.Random(seed), tmp_path / "run"
    _run(recipe, tmp_path / "undisturbed", 2, LAYOUTS[layout])
    total = _lines(tmp_path / "undisturbed")
    struck = 0
    for moment in sorted(draw.sample(range(1, total), kills)):
        process = _started(recipe, run, 2, LAYOUTS[layout])
        while _lines(run) < moment and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        struck += process.poll() is None
        _kill_all(process)
    assert struck
    _run(recipe, run, 2, LAYOUTS[layout])
    assert weights(run) == weights(tmp_path / "undisturbed")
    assert left_behind(run) == []
    for stage in STAGES:
        assert [row["loss"] for row in rows(run, stage)] == [
            row["loss"] for row in rows(tmp_path / "undisturbed", stage)
        ]


def _lines(run: Path) -> int:
    """Rows that the stages wrote so far."""
    return sum(path.read_bytes().count(b"\n") for path in run.glob("*/metrics.jsonl"))


def _kill_all(process: subprocess.Popen) -> None:
    """torchrun starts its processes in sessions of their own: they are found by their parent."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    for pid in [process.pid, *map(int, found)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


def test_a_signal_to_torchrun_saves_on_all_and_is_told_once(tmp_path):
    overrides = ["pretrain.steps=4000", "world.documents=20000", "pretrain.checkpoint_every=0",
                 "pretrain.validate_every=0", "pretrain.sample_every=0"]  # fmt: skip
    run = tmp_path / "run"
    asked = [*LAYOUTS["shards"], *overrides]
    process = _started(recipe_file(tmp_path), run, 2, asked)
    while _lines(run) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    said, _ = process.communicate(timeout=30)
    (line,) = [line for line in said.splitlines() if "error: " in line and "process" in line]
    assert "stopped by SIGTERM after step" in line and "and saved" in line
    assert read_json(run / "run.json")["stages"]["pretrain"]["status"] == "interrupted"
    (saved,) = (run / "pretrain" / "checkpoints").iterdir()
    assert sorted(path.name for path in saved.glob("*.safetensors")) == [
        "model.00000.safetensors", "model.00001.safetensors",
        "optimiser.00000.safetensors", "optimiser.00001.safetensors",
    ]  # fmt: skip
