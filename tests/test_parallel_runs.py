"""Whole runs under torchrun: what one process finds, and signals end all."""

from __future__ import annotations

import time

import pytest

from fourstage.files import read_json
from parallel_support import launched, lines, run_together
from pipeline_support import STAGES, recipe_file, results, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LAYOUTS = {"shards": ["parallel.shard=2"], "tensor": ["parallel.tensor=2"],
           "sequence": ["parallel.tensor=2", "parallel.sequence=true"],
           "replicas": ["parallel.replicate=2"]}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_four_stages_learn_what_one_process_learns(tmp_path, layout):
    recipe = recipe_file(tmp_path)
    run_together(recipe, tmp_path / "one", 1, [])
    said = run_together(recipe, tmp_path / "two", 2, LAYOUTS[layout])
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


def test_a_signal_to_torchrun_saves_on_all_and_is_told_once(tmp_path):
    overrides = ["pretrain.steps=4000", "world.documents=20000", "pretrain.checkpoint_every=0",
                 "pretrain.validate_every=0", "pretrain.sample_every=0"]  # fmt: skip
    run = tmp_path / "run"
    asked = [*LAYOUTS["shards"], *overrides]
    process = launched(recipe_file(tmp_path), run, 2, asked)
    while lines(run) < 5:
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
