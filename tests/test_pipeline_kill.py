"""A run that is killed anywhere and run again ends with the bytes of one that nobody disturbed."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourstage.files import read_json
from fourstage.recipe import load
from pipeline_support import (
    STAGES,
    environment,
    folders,
    go,
    left_behind,
    recipe_file,
    results,
    rows,
    started,
    tiny,
    weights,
    whole_run,
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.getbasetemp())


def _lines(run: Path) -> int:
    """Rows that the stages wrote so far."""
    return sum(path.read_bytes().count(b"\n") for path in run.glob("*/metrics.jsonl"))


def _killed_at(process: subprocess.Popen, run: Path, written: int, wait: float) -> bool:
    """Kills the process `wait` seconds after that many rows; False where it ended before."""
    with process:
        assert process.stdout is not None and process.stdout.readline()
        while _lines(run) < written and process.poll() is None:
            time.sleep(0.005)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
        said = process.stdout.read()
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0


def _assert_same(run: Path, undisturbed: Path, stages=STAGES) -> None:
    """All that a run is judged by is the same, and nothing of the kills is left."""
    assert weights(run) == weights(undisturbed)
    for stage in stages:
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (undisturbed / stage / name).exists():
                assert _timeless(run, stage, name) == _timeless(undisturbed, stage, name)
        one, other = results(run, stage), results(undisturbed, stage)
        assert one["metrics"] == other["metrics"] and one["tokens"] == other["tokens"]
    assert left_behind(run) == [] and folders(run) == set(stages)
    for name in ("recipe.yaml", "data/report.json", "data/manifest.json"):
        assert (run / name).read_text() == (undisturbed / name).read_text()


def _timeless(run: Path, stage: str, name: str) -> list[dict]:
    found = rows(run, stage, name)
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in found]


def _kill_often(recipe: Path, run: Path, kills: int, total: int, seed: int) -> int:
    """Runs a recipe to its end with `kills` at moments spread over it; how many struck."""
    print(f"seed of the moments: {seed}")
    draw = random.Random(seed)
    moments = [0, *sorted(draw.sample(range(1, total), kills - 1))]
    struck = 0
    for moment in moments:
        process = started("run", recipe, "--out", run)
        struck += _killed_at(process, run, moment, draw.uniform(0, 0.3))
    process = started("run", recipe, "--out", run)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return struck


def test_killed_at_random_moments_a_run_ends_with_the_same_bytes(finished, tmp_path):
    recipe, total = recipe_file(tmp_path), _lines(finished)
    assert _kill_often(recipe, tmp_path / "run", 4, total, random.randrange(10**6)) >= 3
    _assert_same(tmp_path / "run", finished)
    for stage in STAGES:
        steps = [row["step"] for row in rows(tmp_path / "run", stage)]
        assert steps == list(range(1, len(steps) + 1))


def test_killed_before_random_writes_a_run_ends_with_the_same_bytes(finished, tmp_path):
    """Each process dies just before it opens, renames or removes a file."""
    seed = random.randrange(10**6)
    print(f"seed of the writes: {seed}")
    done = subprocess.run(
        [sys.executable, "-c", "import pipeline_support as p, sys; p.die_at_writes(*sys.argv[1:])",
         recipe_file(tmp_path), tmp_path / "run", str(seed)],
        cwd=Path(__file__).parent, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 5
    _assert_same(tmp_path / "run", finished)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_fifty_times_the_smoke_recipe_ends_with_the_same_bytes(tmp_path):
    recipe = tmp_path / "smoke.yaml"
    recipe.write_text(load("smoke", ["device=cpu"]).to_yaml())
    go(load(str(recipe)), tmp_path / "undisturbed")
    total = _lines(tmp_path / "undisturbed")
    assert _kill_often(recipe, tmp_path / "run", 50, total, random.randrange(10**6)) >= 40
    _assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_signal_saves_ends_with_130_and_goes_on_to_the_same_bytes(finished, tmp_path):
    slow = ("sft.steps=120", "sft.batch_tokens=240", "sft.checkpoint_every=0")
    recipe = recipe_file(tmp_path, tiny(*slow, "sft.validate_every=0", "sft.sample_every=0"))
    run, undisturbed = (shutil.copytree(finished, tmp_path / name) for name in ("run", "whole"))
    shutil.rmtree(run / "sft")
    before = _lines(run)
    process = started("sft", recipe, "--out", run)
    while _lines(run) < before + 5:
        assert process.poll() is None
        time.sleep(0.005)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "stopped by SIGTERM after step" in line and "run the same command again" in line
    assert "Traceback" not in said
    assert read_json(run / "run.json")["stages"]["sft"]["status"] == "interrupted"
    step = int(line.split("after step ")[1].split()[0])
    assert rows(run, "sft")[-1]["step"] <= step
    assert (run / "sft" / "checkpoints" / f"step-{step:08d}").is_dir()
    assert f"going on from step {step} of 120" in go(load(str(recipe)), run, only="sft")
    go(load(str(recipe)), undisturbed, only="sft")
    assert weights(run)["sft"] == weights(undisturbed)["sft"]
    assert _timeless(run, "sft", "metrics.jsonl") == _timeless(undisturbed, "sft", "metrics.jsonl")


def test_a_signal_before_training_ends_with_130_too(tmp_path):
    recipe, run = recipe_file(tmp_path, tiny("world.documents=2000000")), tmp_path / "run"
    process = started("run", recipe, "--out", run)
    while not (run / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "run the same command again" in line and "Traceback" not in said


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_cut_short_is_passed_over_for_the_one_before(finished, tmp_path, file):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "sft" / "model")
    (run / "sft" / "results.json").unlink()
    *_, before, newest = sorted((run / "sft" / "checkpoints").glob("step-*"))
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    said = go(tiny(), run)
    (line,) = [line for line in said if "damaged" in line]
    assert newest.name in line and f"going on from step {int(before.name[5:])}" in line
    assert weights(run) == weights(finished)
    steps = [row["step"] for row in rows(run, "sft")]
    assert steps == list(range(1, len(steps) + 1))


def test_without_any_whole_checkpoint_a_stage_starts_from_its_beginning(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "rl" / "results.json").unlink()
    for folder in (run / "rl" / "checkpoints").glob("step-*"):
        (folder / "manifest.json").unlink()
    said = go(tiny(), run)
    assert any("starting from the beginning" in line for line in said)
    assert weights(run) == weights(finished)
