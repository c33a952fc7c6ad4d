"""Wrong input to a command: exit code 2, a line for each fault, and nothing lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from data_texts import english
from pipeline_support import call, own_text, recipe_file, tiny, touched, whole_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def recipe(tmp_path) -> Path:
    return recipe_file(tmp_path)


@pytest.fixture
def text(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(english(60))
    return folder


def faults(capsys, *arguments) -> list[str]:
    """The faults that a command tells, one a line, and nothing else."""
    code, _, err = call(capsys, *arguments)
    lines = err.splitlines()
    assert code == 2, (code, err)
    assert lines and all(line.startswith("error: ") for line in lines), err
    return [line.removeprefix("error: ") for line in lines]


def fault(capsys, *arguments) -> str:
    (line,) = faults(capsys, *arguments)
    return line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smok", "did you mean 'smoke'?"),
        ("tinny.yaml", "did you mean 'tiny.yaml'?"),
        ("", "no recipe"),
    ],
)
def test_an_unknown_recipe_is_answered_with_the_nearest(
    tmp_path, recipe, monkeypatch, capsys, name, words
):
    monkeypatch.chdir(tmp_path)
    assert words in fault(capsys, "run", name)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["run", "prepare", "pretrain", "sft", "reward", "rl"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.lerning_rate=1e-3", "did you mean 'sft.learning_rate'?"),
        ("learning_rate=1e-3", "did you mean 'pretrain.learning_rate'?"),
        ("sft.steps=many", "sft.steps=many: 'many' is not a number"),
        ("sft.steps=1.5", "whole number"),
        ("rl.gamma=2", "rl.gamma=2: must be at most 1"),
        ("rl.algorithm=ppp", "raft; did you mean 'ppo'?"),
        ("sft", "write key=value"),
        ("device=abacus", "must be one of auto, cpu"),
        ("rl.group=3", "rl: rollout_batch=16 is not a multiple of group=3"),
    ],
)
def test_a_wrong_override_is_named_with_what_to_write(
    tmp_path, recipe, capsys, command, override, words
):
    assert words in fault(capsys, command, recipe, override, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data: {pretrain: world\nseed: 0", "tiny.yaml:2: broken YAML"),
        ("sft:\n  lerning_rate: 1e-3\n", "tiny.yaml:2: unknown key 'sft.lerning_rate'"),
        ("seed: 0\nseed: 1\n", "tiny.yaml:2: seed is written twice"),
        ("sft:\n  steps: none at all\n", "tiny.yaml:2: sft.steps=none at all"),
        ("- a list\n", "a mapping of keys to values"),
        ("", "data.pretrain is missing"),
        ("\x00\x01", "broken YAML"),
    ],
)
def test_a_broken_recipe_file_is_named_with_its_line(tmp_path, recipe, capsys, content, words):
    recipe.write_text(content)
    assert words in fault(capsys, "run", recipe, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_fault_of_a_recipe_is_told_at_once(tmp_path, recipe, capsys):
    told = faults(
        capsys, "run", recipe, "sft.steps=0", "modl.width=3", "rl.lam=2", "--out", tmp_path / "run"
    )
    assert len(told) == 3
    assert {line.split("=")[0].split(";")[0] for line in told} == {
        "unknown key 'modl.width'",
        "sft.steps",
        "rl.lam",
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rl.environment.turns=3", "rl.environment.kind is missing: write one of guess, calcul"),
        ("rl.engine.gpus=1", "rl.engine.kind is missing: write one of vllm, openai, sglang, ray"),
        ("rl.rewards=python", "rl.rewards.0=python: kind python needs function: write module:fu"),
        ("rl.rewards=[{kind: http, url: ftp://x}]", "rl.rewards.0: url=ftp://x: write http://"),
        ("rl.rewards=[{kind: math, weight: x}]", "rl.rewards.0.weight=x: 'x' is not a number"),
        ("reward.heads=helpful", "reward.heads=helpful: must be names with a value for each"),
    ],
)
def test_a_field_is_told_by_the_path_that_it_is_written_under(recipe, capsys, override, said):
    assert said in fault(capsys, "plan", recipe, override)


def test_a_recipe_that_is_no_text_or_no_file_is_refused(tmp_path, recipe, capsys):
    recipe.write_bytes(b"\xff\xfe\x00binary\xff")
    assert "not UTF-8" in fault(capsys, "run", recipe)
    assert "cannot read the recipe" in fault(capsys, "run", f"{tmp_path}/")


def _own(text: Path, *overrides: str) -> Path:
    return recipe_file(text.parent, own_text(text, *overrides))


@pytest.mark.parametrize("command", ["run", "prepare", "pretrain"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "data.pretrain"),
        (b"Too short.", "data.pretrain"),
        (b"\x7fELF\x00\x00\x01" * 9, "a.txt is binary"),
        ("naïve café ".encode("latin-1") * 20, "a.txt is not UTF-8"),
    ],
)
def test_text_that_cannot_be_used_is_named(tmp_path, text, capsys, command, content, words):
    (text / "a.txt").write_bytes(content)
    assert words in fault(capsys, command, _own(text), "--out", tmp_path / "run")


@pytest.mark.parametrize("command", ["run", "prepare", "pretrain"])
def test_a_folder_without_text_is_named(tmp_path, text, capsys, command):
    (text / "a.txt").unlink()
    line = fault(capsys, command, _own(text), "--out", tmp_path / "run")
    assert f"data.pretrain={text}: nothing to read in this folder" in line


def test_a_path_that_does_not_exist_is_answered_with_the_nearest(tmp_path, text, capsys):
    recipe = _own(text, f"data.pretrain={tmp_path / 'txts'}")
    line = fault(capsys, "run", recipe, "--out", tmp_path / "run")
    assert "no such file or folder" in line and f"did you mean '{text}'?" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_text_that_may_not_be_read_is_named(tmp_path, text, capsys):
    (text / "a.txt").chmod(0)
    assert "cannot read" in fault(capsys, "run", _own(text), "--out", tmp_path / "run")


def test_malformed_rows_are_named_with_file_and_line(tmp_path, text, capsys):
    rows = tmp_path / "sft.jsonl"
    good = json.dumps({"prompt": "Say so.", "completion": "So."})
    wrong = json.dumps({"promt": "Say so.", "completion": "So."})
    rows.write_text(f"{good}\n{{not json\n{good}\n")
    recipe = _own(text, f"data.sft={rows}")
    assert f"{rows}:2: broken JSON" in fault(capsys, "run", recipe, "--out", tmp_path / "run")
    rows.write_text(f"{good}\n{good}\n{wrong}\n{wrong}\n")
    told = faults(capsys, "run", recipe, "--out", tmp_path / "run")
    assert [line.split(": ")[0] for line in told] == [f"{rows}:3", f"{rows}:4"]
    # Nothing was trained before it was told.
    assert not (tmp_path / "run" / "pretrain" / "metrics.jsonl").exists()


def test_rows_of_another_stage_are_refused_before_anything_is_trained(tmp_path, text, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Say so.", "completion": "So."}) + "\n")
    line = fault(capsys, "run", _own(text, f"data.preferences={pairs}"), "--out", tmp_path / "run")
    assert "data.preferences" in line
    assert not (tmp_path / "run" / "pretrain" / "metrics.jsonl").exists()


def test_a_vocabulary_too_large_for_the_text_is_refused(tmp_path, text, capsys):
    recipe = _own(text, "tokenizer.vocab_size=50000")
    line = fault(capsys, "run", recipe, "--out", tmp_path / "run")
    assert "vocab_size=50000" in line.replace(",", "")


@pytest.mark.parametrize("command", ["chat", "generate", "explore"])
def test_a_model_that_cannot_write_is_refused(tmp_path, finished, capsys, command):
    (tmp_path / "empty").mkdir()
    prompt = [] if command == "chat" else ["--prompt", "a"]
    for folder, words in (
        (finished / "reward", "is a reward model"),
        (tmp_path / "empty", "is empty"),
        (finished / "nothing", "no such folder"),
        (finished / "recipe.yaml", "is a file"),
    ):
        assert words in fault(capsys, command, folder, *prompt)


def test_no_run_has_no_report(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        assert str(folder) in fault(capsys, "report", folder)
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "-1"], "temperature=-1"),
        (["--prompt", "word " * 300], "the model's context holds 192"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--temprature", "1"], "did you mean '--temperature'?"),
        (["--temperature"], "option '--temperature' requires an argument"),
    ],
)
def test_generation_says_what_it_cannot_do(finished, capsys, options, words):
    prompt = [] if "--prompt" in options else ["--prompt", "a"]
    assert words in fault(capsys, "generate", finished, *prompt, *options)


def test_a_model_from_outside_must_be_able_to_play_its_role(tmp_path, finished, recipe, capsys):
    run = ("--out", tmp_path / "run")
    scorer, chat = finished / "reward" / "model", finished / "sft" / "model"
    for override, words in (
        (f"sft.from={scorer}", "is a reward model: it scores text and cannot write"),
        (f"rl.reward_model={chat}", "is no reward model"),
        (f"sft.from={finished / 'nothing'}", f"sft.from={finished / 'nothing'}: no such folder"),
        (f"rl.watch_model={finished}", f"models in it: {finished / 'sft' / 'model'}, {scorer}"),
    ):
        assert words in fault(capsys, "run", recipe, override, *run)
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.parametrize("command", ["run", "prepare", "sft"])
def test_a_run_that_another_process_works_on_is_left_alone(
    tmp_path, finished, recipe, capsys, command
):
    run = shutil.copytree(finished, tmp_path / "run")
    before = touched(run)
    with open(run / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("process 77\n")
        held.flush()
        line = fault(capsys, command, recipe, "sft.steps=3", "--out", run)
    assert f"{run} is in use by another process (process 77)" in line and "--out" in line
    assert touched(run) == before


def test_a_run_folder_that_is_a_file_is_refused(tmp_path, recipe, capsys):
    (tmp_path / "run").write_text("mine")
    assert "is a file" in fault(capsys, "run", recipe, "--out", tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_an_unreadable_record_of_a_run_stops_it(tmp_path, finished, recipe, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "run.json").write_text('{"format": 1, "stag')
    before = touched(run)
    assert "run.json is unreadable" in fault(capsys, "run", recipe, "--out", run)
    assert touched(run) == before


def test_a_fault_leaves_a_finished_run_as_it_was(tmp_path, finished, recipe, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    before = touched(run), (run / "run.json").read_bytes(), (run / "recipe.yaml").read_bytes()
    fault(capsys, "run", recipe, "data.sft=nowhere.jsonl", "--out", run)
    fault(capsys, "run", recipe, "data.pretrain=nowhere", "seed=4", "--out", run)
    fault(capsys, "run", recipe, f"rl.reward_model={run / 'sft'}", "--out", run)
    assert before == (
        touched(run),
        (run / "run.json").read_bytes(),
        (run / "recipe.yaml").read_bytes(),
    )


def test_what_a_command_does_not_know_is_answered_with_the_nearest(
    tmp_path, finished, recipe, capsys
):
    for arguments, words in (
        (["rnu"], "did you mean 'run'?"),
        (["--versoin"], "did you mean '--version'?"),
        (["run", recipe, "--ot", tmp_path], "did you mean '--out'?"),
        (["run"], "RECIPE"),
        (["prepare", recipe, "--only", "pretrian"], "did you mean 'pretrain'?"),
        (["prepare", recipe, "--only", "nonsense"], "--only nonsense: no such part"),
        (["inspect", "batch", finished, "--stage", "nonsense"], "--stage nonsense: no such stage"),
        (["inspect", "batch", finished, "--stage", "rewad"], "did you mean 'reward'?"),
        (["inspect", "batch", tmp_path, "--stage", "sft"], "recipe.yaml"),
    ):
        assert words in fault(capsys, *arguments)


@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "rl"])
def test_a_missing_text_is_told_before_anything_is_made(tmp_path, capsys, command):
    recipe = recipe_file(tmp_path, tiny("data.pretrain=null"))
    for arguments in (["run"], ["prepare"], ["prepare", "--only", command], [command]):
        line = fault(capsys, *arguments, recipe, "--out", tmp_path / "run")
        assert line.startswith("data.pretrain is missing") and command in line
    assert not (tmp_path / "run").exists()


def test_where_models_take_the_place_of_stages_no_text_is_missed(tmp_path, finished, capsys):
    recipe = recipe_file(tmp_path, tiny("data.pretrain=null", "data.prompts=world"))
    models = [f"rl.from={finished / 'sft/model'}", f"rl.reward_model={finished / 'reward/model'}"]
    code, _, err = call(capsys, "run", recipe, *models, "--out", tmp_path / "run")
    assert code == 0 and err == ""
