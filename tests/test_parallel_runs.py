"""Whole runs under torchrun: what one process finds, and signals end all."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from fourstage.files import read_json
from parallel_support import launched, lines, run_together
from pipeline_support import STAGES, go, recipe_file, results, rows, tiny, told_by_likelihood

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LAYOUTS = {"shards": ["parallel.shard=2"], "tensor": ["parallel.tensor=2"],
           "sequence": ["parallel.tensor=2", "parallel.sequence=true"],
           "replicas": ["parallel.replicate=2"]}  # fmt: skip

# What the `rl` stage can be, beside PPO against a reward model.
FORMS = {
    "environment": ["rl.algorithm=grpo", "rl.group=4", "rl.environment.kind=guess",
                    "rl.environment.turns=3"],
    "behind": ["rl.algorithm=grpo", "rl.group=4", "rl.behind=1"],
    "watched": ["rl.algorithm=rloo", "rl.group=4", "rl.watch_model=reward"],
    "given": ["rl.algorithm=dpo"],
    "online": ["rl.algorithm=dpo", "rl.online=true", "rl.group=4"],
    "imitating": ["rl.algorithm=raft", "rl.group=4"],
}  # fmt: skip


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A run up to its reward model."""
    folder = tmp_path_factory.mktemp("taught")
    for stage in ("pretrain", "sft", "reward"):
        go(tiny(), folder, only=stage)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rl_learns_on_two_processes_what_it_learns_on_one(taught, tmp_path, form):
    asked = [each.replace("=reward", f"={taught}/reward/model") for each in FORMS[form]]
    for processes in (1, 2):
        shutil.copytree(taught, tmp_path / str(processes))
        layout = LAYOUTS["replicas"] if processes > 1 else []
        run_together(recipe_file(tmp_path), tmp_path / str(processes), processes, [*layout, *asked])
    one, two = (rows(tmp_path / name, "rl") for name in ("1", "2"))
    assert len(one) == len(two) > 1
    for here, there in zip(two, one, strict=True):
        for name in ("loss", "reward", "length", "turns", "gradient_norm", "kl"):
            if there.get(name) is not None:
                assert here[name] == pytest.approx(there[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("layout", ["replicas", "shards"])
def test_a_score_learns_beside_the_same_opinion_on_two_processes(taught, tmp_path, layout):
    preferences = told_by_likelihood(tmp_path)
    for processes in (1, 2):
        run = shutil.copytree(taught, tmp_path / str(processes))
        asked = LAYOUTS[layout] if processes > 1 else []
        told = [*asked, preferences, "reward.likelihood=true", "rl.steps=2"]
        run_together(recipe_file(tmp_path), run, processes, told)
    one, two = (rows(tmp_path / name, "reward") for name in ("1", "2"))
    assert len(one) == len(two) > 1
    for here, there in zip(two, one, strict=True):
        for name in ("loss", "accuracy", "gradient_norm", "validation_loss"):
            if there.get(name) is not None:
                assert here[name] == pytest.approx(there[name], rel=1e-4, abs=1e-5), name
    first, second = (results(tmp_path / name, "reward")["metrics"] for name in ("1", "2"))
    weight = first["likelihood_alone_weight"]
    assert weight == pytest.approx(second["likelihood_alone_weight"]) and weight > 0.1


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
