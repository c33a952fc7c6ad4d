"""The RL stage with rewards of one's own: beside a reward model, instead of it, and broken ones."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from fourstage.data.making import reference_task
from fourstage.errors import InputError
from fourstage.files import read_json
from fourstage.recipe import recipe_from
from fourstage.stages.judging import check_rewards
from pipeline_support import (
    folders,
    go,
    recipe_file,
    results,
    rows,
    started,
    tiny,
    weights,
    whole_run,
)

FUNCTION = """
def score(prompts, completions, weight, ended, **kwargs):
    return [w * c.count(" ") - (not e) for w, c, e in zip(weight, completions, ended)]
"""
BROKEN = """
import time

def score(completions, **kwargs):
    score.calls = getattr(score, "calls", 0) + 1
    if score.calls == 1:
        return [float("nan")] * len(completions)
    if score.calls == 2:
        return [float("inf")] * len(completions)
    if score.calls == 3:
        raise RuntimeError("out of tea")
    if score.calls == 4:
        time.sleep(60)
    return [0.5] * len(completions)
"""
GROUPS = ("rl.algorithm=dapo", "rl.group=4")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the whole run, whose last stage is to be run again."""
    return shutil.copytree(finished, tmp_path / "run")


def prompts(folder: Path) -> Path:
    """Prompts with a ground truth and a column of their own."""
    file = folder / "prompts.jsonl"
    lines = [{"prompt": f"What is {n} and 1?", "answer": str(n + 1), "weight": n % 3}
             for n in range(40)]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def own(folder: Path, text: str = FUNCTION) -> str:
    file = folder / "mine.py"
    file.write_text(text)
    return f"rl.rewards=[{{kind: python, function: '{file}:score', seconds: 2}}]"


def go_on(run: Path, *overrides: str) -> list[str]:
    return go(tiny(*overrides), run)


def test_rewards_alone_need_no_reward_model(finished, tmp_path):
    run = tmp_path / "run"
    said = go(tiny(*GROUPS, f"data.prompts={prompts(tmp_path)}", own(tmp_path)), run)
    assert folders(run) == {"pretrain", "sft", "rl"}
    assert "reward: left out, rl.rewards ask no reward model" in said
    assert weights(run)["sft"] == weights(finished)["sft"]
    row = rows(run, "rl")[-1]
    assert {"reward", "reward/python", "reward_faults/python", "dead_groups"} <= row.keys()
    page = (run / "report.html").read_text("utf-8")
    assert "scored by python" in page and "This run is not finished" not in page
    assert "kl" not in row, "an algorithm without a KL holds no reference"
    found = results(run, "rl")["metrics"]
    assert {"proxy_reward_sft", "proxy_reward", "kl", "reward_part/python"} <= found.keys()
    sample = rows(run, "rl", "samples.jsonl")[0]
    assert sample["reward"] == sample["rewards"]["python"]
    assert read_json(run / "run.json")["stages"]["rl"]["inputs"]["parents"].keys() == {"from"}


def test_right_answers_are_counted_greedy_and_sampled_by_the_part_that_weighs_most(run, tmp_path):
    parts = (
        "[{kind: exact, weight: 0.5}, {kind: regex, name: short, pattern: '^.{0,400}$'}, length]"
    )
    go_on(run, "rl.algorithm=grpo", f"data.prompts={prompts(tmp_path)}", f"rl.rewards={parts}")
    found = results(run, "rl")
    metrics = found["metrics"]
    for name in ("accuracy_sft", "accuracy", "sampled_accuracy_sft", "sampled_accuracy"):
        # No answer of a tiny model is that long, and none is a sum.
        assert metrics[name] == metrics[f"{name}/short"] == 1.0
        assert metrics[f"{name}/exact"] == 0.0
        assert found["intervals"][name] == [1.0, 1.0]
    page = (run / "report.html").read_text("utf-8")
    assert "RL right answers" in page


def test_without_a_part_that_checks_nothing_is_called_right(finished):
    assert not [name for name in results(finished, "rl")["metrics"] if "accuracy" in name]


def test_a_function_that_changes_repeats_reinforcement_learning_alone(run, tmp_path):
    told = (*GROUPS, f"data.prompts={prompts(tmp_path)}", own(tmp_path))
    go_on(run, *told)
    assert "rl: finished and unchanged, kept" in go_on(run, *told)
    own(tmp_path, FUNCTION + "\n# another\n")
    said = go_on(run, *told)
    assert "rl: run again, since a file of its rewards changed" in said
    assert "sft: finished and unchanged, kept" in said


def test_a_reward_model_is_one_part_of_a_sum(run):
    parts = "rl.rewards=[{kind: model, weight: 0.5}, {kind: missing_end, weight: 2}]"
    go_on(run, parts)
    row = rows(run, "rl")[0]
    expected = 0.5 * row["reward/model"] + 2 * row["reward/missing_end"]
    assert row["reward"] == pytest.approx(expected, rel=1e-5)


def test_the_reward_model_as_the_only_part_gives_the_same_bytes(run, finished):
    go_on(run, "rl.rewards=model")
    assert weights(run)["rl"] == weights(finished)["rl"]


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce++"])
def test_a_reward_that_is_broken_is_counted_told_and_survived(run, tmp_path, algorithm):
    """NaN, infinity, an exception and a hang, one after the other: the stage goes on."""
    broken = own(tmp_path, BROKEN)
    few = ("rl.steps=8", "evaluation.prompts=2", "rl.sample_every=0")
    said = go_on(run, f"rl.algorithm={algorithm}", broken, *few)
    told = [row["reward_faults/python"] for row in rows(run, "rl") if "iteration" in row]
    assert max(told) == 16
    assert any("the number is inf" in line or "the number is nan" in line for line in said)
    assert all(row["loss"] is not None for row in rows(run, "rl"))


def test_killed_with_rewards_of_ones_own_a_stage_ends_with_the_same_bytes(run, tmp_path):
    told = tiny(
        "rl.algorithm=rloo", "rl.group=2", "rl.dynamic_sampling=true", "rl.reference_reset=2",
        "rl.steps=10", f"data.prompts={prompts(tmp_path)}", own(tmp_path),
    )  # fmt: skip
    undisturbed = shutil.copytree(run, tmp_path / "undisturbed")
    go(told, undisturbed)
    process = started("run", recipe_file(tmp_path, told), "--out", run)
    metrics = run / "rl" / "metrics.jsonl"
    until = time.monotonic() + 60
    # The old stage was set aside: these rows are of the process.
    while (
        not (run / "rl.1").exists() or not metrics.exists() or metrics.read_bytes().count(b"\n") < 6
    ):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (run / "rl" / "results.json").exists()
    assert "rl: goes on" in go(told, run)
    assert weights(run) == weights(undisturbed)
    assert weights(run)["rl"] != weights(run)["sft"]
    timeless = [
        [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(folder, "rl")]
        for folder in (run, undisturbed)
    ]
    assert timeless[0] == timeless[1]


def test_a_constant_reward_moves_nothing(run):
    same = 'rl.rewards=[{kind: constraints, constraints: {forbidden: ["qqq"]}}]'
    go_on(run, *GROUPS, same)
    assert weights(run)["rl"] == weights(run)["sft"]
    assert all(row["dead_groups"] == 1 for row in rows(run, "rl"))


def test_answers_that_never_end_can_be_left_out_of_the_loss(run):
    overlong = ("rl.overlong=leave_out", "rl.max_new_tokens=2")
    go_on(run, *GROUPS, "rl.rewards=missing_end", *overlong)
    assert rows(run, "rl")[0]["left_out"] > 0.5


def test_what_cannot_work_is_told_before_anything_is_trained(tmp_path):
    run = tmp_path / "run"
    lost = "rl.rewards=[{kind: python, function: 'nowhere.py:score'}]"
    with pytest.raises(InputError, match="there is no file nowhere"):
        go(tiny(lost), run)
    with pytest.raises(InputError, match=r"rl.rewards, math: .*ground truth"):
        go(tiny("rl.rewards=math"), run)
    assert not (run / "pretrain" / "model").exists()


def test_what_rewards_advise_is_said_and_refuses_nothing():
    said: list[str] = []
    tasks = [reference_task(f"{n} + 1?", str(n + 1)) for n in range(5)]
    check_rewards(recipe_from({"rl": {"rewards": "math"}}).rl, tasks, said.append)
    assert len(said) == 1 and "extraction: lenient, or kind: exact" in said[0]


def test_a_prompt_longer_than_the_context_is_left_out_and_counted(run, tmp_path):
    file = prompts(tmp_path)
    long = {"prompt": "word " * 400, "answer": "1", "weight": 1}
    file.write_text(file.read_text() + json.dumps(long) + "\n")
    go_on(run, *GROUPS, f"data.prompts={file}", "rl.rewards=math")
    assert read_json(run / "data" / "report.json")["rl"]["too_long"] == 1
