"""What a run of all four stages leaves, from each kind of data and from models from outside."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from data_texts import english
from fourstage.files import read_json
from fourstage.interchange import load_model
from fourstage.pipeline.lineage import model_hash
from fourstage.recipe import load
from pipeline_support import (
    STAGES,
    folders,
    go,
    left_behind,
    own_text,
    results,
    rows,
    tiny,
    touched,
    weights,
    whole_run,
)

_TEXT = (".json", ".jsonl", ".yaml", ".html", ".md", ".jinja", ".txt")
_LOADS = re.compile(
    r"""(?:src|href|action|data|poster|url|@import)\s*[=(]?\s*["']?\s*(?:https?:)?//""", re.I
)
# stage -> what is estimated on a sample and has an interval.
MEASURED = {
    "pretrain": ("validation_bits_per_byte", "entropy_bits_per_byte"),
    "sft": ("base_task_success", "base_few_shot_task_success", "task_success"),
    "reward": ("pair_accuracy", "pair_accuracy_ceiling", "right_wrong_accuracy"),
    "rl": ("gold_reward_sft", "gold_reward", "gold_reward_ceiling", "task_success", "kl"),
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def finished_copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def _lines(path: Path, made: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def _sentences() -> list[str]:
    return [f"{part}." for part in english(60, seed=3).replace("\n\n", " ").split(". ")]


@pytest.fixture
def text(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(english(250))
    (folder / "b.txt").write_text(english(80, seed=1))
    return folder


def test_every_file_that_the_design_names_is_there(finished):
    assert {"recipe.yaml", "run.json", "report.html"} <= {path.name for path in finished.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (finished / "tokenizer" / name).is_file()
    assert set(read_json(finished / "data" / "report.json")) == {"tokenizer", *STAGES}
    for stage in STAGES:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
            assert (finished / stage / "model" / name).is_file()
        assert list((finished / stage / "checkpoints").glob("step-*"))
    assert folders(finished) == set(STAGES) and left_behind(finished) == []


@pytest.mark.parametrize("stage", STAGES)
def test_results_hold_each_named_number_with_its_interval(finished, stage):
    found = results(finished, stage)
    assert {"metrics", "intervals", "seconds", "tokens", "flops"} <= found.keys()
    assert found["seconds"] > 0 and found["flops"] > 0
    assert found["metrics"]["steps"] == getattr(tiny(), stage).steps
    for name in MEASURED[stage]:
        low, high = found["intervals"][name]
        assert low <= found["metrics"][name] <= high, name


@pytest.mark.parametrize("stage", STAGES)
def test_rows_hold_step_loss_rate_and_speed(finished, stage):
    found, steps = rows(finished, stage), getattr(tiny(), stage).steps
    assert [row["step"] for row in found] == list(range(1, steps + 1))
    for row in found:
        assert row["loss"] == row["loss"] and row["learning_rate"] >= 0
        assert row["tokens_per_second"] > 0
    assert found[-1]["tokens"] == results(finished, stage)["tokens"]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rl"])
def test_the_same_prompts_are_shown_as_a_stage_learns(finished, stage):
    found = rows(finished, stage, "samples.jsonl")
    by_step: dict[int, list[str]] = {}
    for row in found:
        by_step.setdefault(row["step"], []).append(row["prompt"])
    assert min(by_step) == 0 and max(by_step) == getattr(tiny(), stage).steps
    assert len({tuple(prompts) for prompts in by_step.values()}) == 1
    assert any(row["response"] for row in found)


def test_the_recipe_written_down_leaves_nothing_to_derive(finished, finished_copy):
    written = load(str(finished / "recipe.yaml"))
    assert written.data.sft == "world" and written.model.params and written.sft.warmup_steps == 0
    said = go(written, finished_copy)
    assert said[:4] == [f"{stage}: finished and unchanged, kept" for stage in STAGES]
    assert (finished_copy / "recipe.yaml").read_text() == (finished / "recipe.yaml").read_text()
    shutil.rmtree(finished_copy / "rl")
    said = go(written, finished_copy)
    assert not [line for line in said if " = " in line]
    assert (finished_copy / "recipe.yaml").read_text() == (finished / "recipe.yaml").read_text()


def test_the_recipe_written_down_is_the_latest(finished_copy):
    go(tiny("name=other", "sft.log_every=3"), finished_copy)
    written = load(str(finished_copy / "recipe.yaml"))
    assert written.name == "other" and written.sft.log_every == 3
    assert written.sft.warmup_steps == 0
    # What was derived, and by which rule, stays on record.
    assert read_json(finished_copy / "run.json")["derived"]


def test_lineage_names_every_input_by_content(finished):
    record = read_json(finished / "run.json")
    made = {stage: record["stages"][stage]["model"] for stage in STAGES}
    for stage in STAGES:
        entry = record["stages"][stage]
        assert entry["status"] == "finished" and entry["seconds"] > 0
        assert {"section", "seed", "tokenizer", "data", "parents"} == entry["inputs"].keys()
        assert {"torch", "python", "fourstage"} <= entry["versions"].keys()
        assert entry["model"] == model_hash(finished / stage / "model")
    parents = {stage: record["stages"][stage]["inputs"]["parents"] for stage in STAGES}
    assert parents == {
        "pretrain": {},
        "sft": {"from": made["pretrain"]},
        "reward": {"from": made["sft"]},
        "rl": {"from": made["sft"], "reward_model": made["reward"]},
    }
    assert record["derived"] and all(item["rule"] for item in record["derived"])


def test_the_page_shows_all_stages_and_fetches_nothing(finished):
    page = (finished / "report.html").read_text()
    assert not _LOADS.search(page) and "<script" not in page
    for part in ("pretraining", "sft", "reward", "rl", "samples", "data", "lineage"):
        assert f'<section id="{part}">' in page
    assert "not finished" not in page


def test_nothing_in_a_run_names_where_it_stands(finished):
    texts = [path for path in finished.rglob("*") if path.suffix in _TEXT]
    assert len(texts) > 40
    for path in texts:
        content = path.read_text()
        assert str(finished) not in content and str(finished.parent) not in content, path


def test_the_same_recipe_in_another_folder_gives_the_same_bytes(finished, tmp_path):
    go(tiny(), tmp_path / "elsewhere" / "again")
    again = tmp_path / "elsewhere" / "again"
    assert weights(again) == weights(finished)
    for stage in STAGES:
        one, other = results(finished, stage), results(again, stage)
        assert one["metrics"] == other["metrics"] and one["intervals"] == other["intervals"]
    assert (again / "recipe.yaml").read_text() == (finished / "recipe.yaml").read_text()


def test_a_run_that_was_moved_goes_on_where_it_stands(finished, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "a" / "moved")
    before = touched(moved)
    said = go(tiny(), moved)
    assert said[:4] == [f"{stage}: finished and unchanged, kept" for stage in STAGES]
    assert touched(moved) == before


def test_grpo_trains_the_policy_without_a_critic(finished_copy, finished):
    go(tiny("rl.algorithm=grpo", "rl.group=4"), finished_copy)
    found = weights(finished_copy)
    assert found["rl"] != weights(finished)["rl"]
    assert {**found, "rl": ""} == {**weights(finished), "rl": ""}
    assert "explained_variance" not in rows(finished_copy, "rl")[-1]
    assert set(MEASURED["rl"]) <= results(finished_copy, "rl")["intervals"].keys()


def test_a_folder_of_text_is_enough_for_all_four_stages(text, tmp_path):
    out = tmp_path / "run"
    recipe = own_text(text, "data.demonstrations=60", "data.comparisons=40")
    said = go(recipe, out)
    report = read_json(out / "data" / "report.json")
    assert report["pretrain"]["origin"] == "files"
    for stage in ("sft", "reward", "rl"):
        assert report[stage]["origin"] == "made" and report[stage]["train"] > 10
        assert any(f"data for {stage}" in line and "made from the text" in line for line in said)
    assert set(weights(out)) == set(STAGES)
    assert "made from" in (out / "report.html").read_text()
    assert 0 <= results(out, "sft")["metrics"]["task_success"] <= 1
    # The world alone knows its entropy; of one's own text nobody does.
    assert "entropy_bits_per_byte" not in results(out, "pretrain")["metrics"]
    before = touched(out)
    assert sum("kept" in line for line in go(recipe, out)) == 4
    assert touched(out) == before


def test_files_of_ones_own_serve_every_stage(text, tmp_path):
    said = _sentences()
    asked = [{"role": "user", "content": f"Tell me more: {line}"} for line in said[:60]]
    dialogues = [
        {"messages": [turn, {"role": "assistant", "content": line}]}
        for turn, line in zip(asked, said[60:120], strict=True)
    ]
    pairs = [
        {"prompt": turn["content"], "chosen": line, "rejected": "No."}
        for turn, line in zip(asked, said[60:120], strict=True)
    ]
    prompts = [{"prompt": f"Go on: {line}"} for line in said[:40]]
    recipe = own_text(
        text,
        f"data.sft={_lines(tmp_path / 'sft.jsonl', dialogues)}",
        f"data.preferences={_lines(tmp_path / 'pairs.jsonl', pairs)}",
        f"data.prompts={_lines(tmp_path / 'prompts.jsonl', prompts)}",
    )
    out = tmp_path / "run"
    go(recipe, out)
    report = read_json(out / "data" / "report.json")
    assert {report[stage]["origin"] for stage in STAGES} == {"files"}
    assert report["sft"]["read"] == report["reward"]["read"] == 60 and report["rl"]["read"] == 40
    assert set(weights(out)) == set(STAGES)
    assert results(out, "reward")["metrics"]["pair_accuracy"] >= 0
    raw = read_json(out / "run.json")["raw"]
    assert set(raw) == {"pretrain", "sft", "preferences", "prompts"}


def test_a_model_from_outside_takes_the_place_of_pretraining(finished, tmp_path):
    base = finished / "pretrain" / "model"
    said = go(tiny(f"sft.from={base}"), tmp_path / "run")
    assert "pretrain: left out, a model from outside takes its place" in said
    assert folders(tmp_path / "run") == {"sft", "reward", "rl"}
    record = read_json(tmp_path / "run" / "run.json")["stages"]
    assert record["sft"]["inputs"]["parents"] == {"from": model_hash(base)}
    # What the stages are made from is the same as inside of a whole run, and so is what comes out.
    assert weights(tmp_path / "run")["sft"] == weights(finished)["sft"]
    assert sum("kept" in line for line in go(tiny(f"sft.from={base}"), tmp_path / "run")) == 3


def test_reinforcement_learning_alone_from_two_models_of_another_run(finished, tmp_path):
    chat, scorer = finished / "sft" / "model", finished / "reward" / "model"
    recipe = tiny(f"rl.from={chat}", f"rl.reward_model={scorer}")
    go(recipe, tmp_path / "run")
    assert folders(tmp_path / "run") == {"rl"}
    record = read_json(tmp_path / "run" / "run.json")["stages"]
    assert record["rl"]["inputs"]["parents"] == {
        "from": model_hash(chat),
        "reward_model": model_hash(scorer),
    }
    policy = load_model(tmp_path / "run" / "rl" / "model")
    assert policy.config == load_model(chat).config


def test_a_reward_model_is_trained_from_a_chat_model_of_another_run(finished, tmp_path):
    chat = finished / "sft" / "model"
    go(tiny(f"reward.from={chat}", f"rl.from={chat}"), tmp_path / "run")
    assert folders(tmp_path / "run") == {"reward", "rl"}
    assert weights(tmp_path / "run")["reward"] == weights(finished)["reward"]


def test_another_model_under_the_same_path_is_noticed(finished, tmp_path):
    base = shutil.copytree(finished / "pretrain" / "model", tmp_path / "base")
    go(tiny(f"sft.from={base}"), tmp_path / "run", only="sft")
    shutil.copytree(finished / "sft" / "model", base, dirs_exist_ok=True)
    said = go(tiny(f"sft.from={base}"), tmp_path / "run", only="sft")
    assert "sft: run again, since a model it is made from changed" in said
    assert folders(tmp_path / "run") == {"sft", "sft.1"}
