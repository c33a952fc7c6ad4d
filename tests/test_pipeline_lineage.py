"""Which stages of a run are kept and which run again, with the bytes of a run begun anew."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data_texts import english
from fourstage.data import sources
from fourstage.errors import InputError, Interrupted
from fourstage.files import read_json, sha256_json, write_json
from fourstage.pipeline import prepare
from fourstage.pipeline.lineage import section_hash
from fourstage.planning import resolve
from pipeline_support import (
    STAGES,
    call,
    folders,
    go,
    own_text,
    recipe_file,
    results,
    tiny,
    touched,
    weights,
    whole_run,
)

KEPT = [f"{stage}: finished and unchanged, kept" for stage in STAGES]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the whole run, to be changed."""
    return shutil.copytree(finished, tmp_path / "tiny")


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    """A folder with a finished run on text of one's own, and the text."""
    where = tmp_path_factory.mktemp("own")
    (where / "texts").mkdir()
    (where / "texts" / "a.txt").write_text(english(250))
    go(_own(where), where / "run")
    return where


def _own(where: Path, *overrides: str):
    amounts = ("data.demonstrations=60", "data.comparisons=40", "data.rl_prompts=40")
    return own_text(where / "texts", *amounts, *overrides)


def _kept(said: list[str]) -> list[str]:
    return [line for line in said if line.endswith("kept")]


def _run_again(run: Path) -> set[str]:
    """The stages whose old folder was set aside."""
    return {name.removesuffix(".1") for name in folders(run) if name.endswith(".1")}


def test_a_finished_run_is_not_touched_again(run):
    before = touched(run)
    said = go(tiny(), run)
    assert said[:4] == KEPT
    assert touched(run) == before and folders(run) == set(STAGES)


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("sft.learning_rate=4e-3", {"sft", "reward", "rl"}),
        ("reward.centring=0.1", {"reward", "rl"}),
        ("rl.gamma=0.9", {"rl"}),
        ("data.comparisons=90", {"reward", "rl"}),
        ("seed=1", set(STAGES)),
    ],
)
def test_what_changed_is_run_again_with_those_after_it_and_only_those(run, override, again):
    before, whole = touched(run), weights(run)
    said = go(tiny(override), run)
    assert _run_again(run) == again
    for stage in STAGES:
        if stage in again:
            assert any(line.startswith(f"{stage}: run again, since ") for line in said)
            assert f"{stage}: its old folder is now {stage}.1" in said
            old = {name.replace(f"{stage}.1/", f"{stage}/"): seen
                   for name, seen in touched(run, [f"{stage}.1"]).items()}  # fmt: skip
            assert old == {n: seen for n, seen in before.items() if n.startswith(f"{stage}/")}
        else:
            assert f"{stage}: finished and unchanged, kept" in said
            assert weights(run)[stage] == whole[stage]
    assert weights(run) != whole


# The last stages' responses are drawn at this temperature, and the third takes its unit from them.
@pytest.mark.parametrize("override", ["sft.learning_rate=4e-3", "rl.temperature=1.3"])
def test_what_is_run_again_ends_as_a_run_begun_anew(run, tmp_path, override):
    go(tiny(override), run)
    go(tiny(override), tmp_path / "new")
    assert weights(run) == weights(tmp_path / "new")
    for stage in STAGES:
        assert results(run, stage)["metrics"] == results(tmp_path / "new", stage)["metrics"]


@pytest.mark.parametrize(
    "override",
    [
        "sft.checkpoint_seconds=5",
        "pretrain.micro_batch_tokens=480",
        "rl.keep_checkpoints=1",
        "reward.log_every=2",
        "sft.checkpoint_every=1",
        "name=another",
    ],
)
def test_what_changes_no_result_runs_nothing_again(run, override):
    before = touched(run)
    assert _kept(go(tiny(override), run)) == KEPT
    assert touched(run) == before


def test_an_old_folder_is_never_overwritten(run):
    first = touched(run, ["rl"])
    for discount in ("0.9", "0.8"):
        go(tiny(f"rl.gamma={discount}"), run)
    assert folders(run) == {*STAGES, "rl.1", "rl.2"}
    assert list(touched(run, ["rl.1"]).values()) == list(first.values())


def test_a_stage_whose_folder_is_gone_is_run_again_with_those_after_it(run):
    before, whole = touched(run, ["pretrain", "sft"]), weights(run)
    shutil.rmtree(run / "reward")
    said = go(tiny(), run)
    assert "reward: run again, since its folder is gone" in said
    assert "rl: run again, since reward is run again" in said
    assert touched(run, ["pretrain", "sft"]) == before and folders(run) == {*STAGES, "rl.1"}
    assert weights(run) == whole


def test_without_its_prepared_data_a_finished_run_stays_finished(run):
    shutil.rmtree(run / "data")
    before = touched(run)
    assert _kept(go(tiny(), run)) == KEPT
    assert touched(run) == before


def test_data_that_a_repeated_stage_reads_are_prepared_again(run, tmp_path):
    whole = shutil.copytree(run, tmp_path / "with data")
    shutil.rmtree(run / "data")
    for folder in (whole, run):
        go(tiny("reward.centring=0.1"), folder)
    assert weights(run) == weights(whole)
    for stage in ("reward", "rl"):
        assert results(run, stage)["metrics"] == results(whole, stage)["metrics"]


def test_without_its_prepared_data_a_run_on_own_text_stays_finished(text_run, tmp_path):
    run = shutil.copytree(text_run / "run", tmp_path / "run")
    shutil.rmtree(run / "data")
    before = touched(run)
    assert _kept(go(_own(text_run), run)) == KEPT
    assert touched(run) == before


def test_raw_data_that_changed_stop_a_run_until_redo(text_run, tmp_path):
    where = shutil.copytree(text_run, tmp_path / "own")
    recipe = _own(where)
    # The same paths seen from the copy: that is a change of the recipe, not of the data.
    assert _kept(go(recipe, where / "run")) == KEPT
    before = touched(where / "run")
    (where / "texts" / "a.txt").write_text(english(250, seed=5))
    with pytest.raises(InputError, match=r"a\.txt.*--redo"):
        go(recipe, where / "run")
    assert touched(where / "run") == before
    said = go(recipe, where / "run", redo=True)
    assert _run_again(where / "run") == set(STAGES)
    assert "pretrain: run again, since its data or the tokenizer are prepared again" in said
    assert _kept(go(recipe, where / "run")) == KEPT


def test_a_file_that_joins_the_raw_data_is_named(text_run, tmp_path):
    where = shutil.copytree(text_run, tmp_path / "own")
    go(_own(where), where / "run")
    (where / "texts" / "late.md").write_text(english(3, seed=9))
    with pytest.raises(InputError, match=r"late\.md"):
        prepare(_own(where), where / "run", say=lambda line: None)


def test_one_stage_says_what_it_waits_for(tmp_path, capsys):
    recipe = recipe_file(tmp_path)
    code, _, err = call(capsys, "sft", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert "sft is made from pretrain" in err and "run `fourstage pretrain` first" in err
    assert "sft.from=DIR" in err and err.count("error: ") == 1


def test_stage_after_stage_gives_the_bytes_of_a_whole_run(finished, tmp_path, capsys):
    recipe, out = recipe_file(tmp_path), tmp_path / "run"
    for stage in STAGES:
        code, said, _ = call(capsys, stage, recipe, "--out", out)
        assert code == 0 and f"{stage}: done" in said
    assert weights(out) == weights(finished)
    for stage in STAGES:
        assert results(out, stage)["metrics"] == results(finished, stage)["metrics"]
    assert _kept(go(tiny(), out)) == KEPT


def test_prepared_first_a_run_ends_the_same(finished, tmp_path, capsys):
    recipe, out = recipe_file(tmp_path), tmp_path / "run"
    code, _, _ = call(capsys, "prepare", recipe, "--out", out)
    assert code == 0 and (out / "data" / "report.json").exists() and folders(out) == set()
    before = (out / "data" / "pretrain" / "train" / "tokens.bin").stat().st_mtime_ns
    go(tiny(), out, only="pretrain")
    assert (out / "data" / "pretrain" / "train" / "tokens.bin").stat().st_mtime_ns == before
    assert weights(out)["pretrain"] == weights(finished)["pretrain"]


def _stops_after(monkeypatch, steps: int) -> None:
    """Lets a signal come while sft's batch of that step is made."""
    real = sources.ExampleSource.batch

    def batch(self, step):
        if step == steps:
            os.kill(os.getpid(), 15)
        return real(self, step)

    monkeypatch.setattr(sources.ExampleSource, "batch", batch)


def test_an_interrupted_stage_counts_the_seconds_of_all_its_parts(finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished, tmp_path / "run")
    for stage in ("sft", "reward", "rl"):
        shutil.rmtree(run / stage)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="step 4 of 6"):
        _stops_after(patch, 3)
        go(tiny(), run)
    record = read_json(run / "run.json")["stages"]["sft"]
    spent = read_json(run / "sft" / "seconds.json")["seconds"]
    assert record["status"] == "interrupted" and spent > 0
    assert record["seconds"] == pytest.approx(spent, abs=0.1)
    write_json(run / "sft" / "seconds.json", {"seconds": spent + 5000})
    said = go(tiny(), run)
    assert "sft: goes on" in said and "going on from step 4 of 6" in said
    assert spent + 5000 < results(run, "sft")["seconds"] < spent + 5000 + 600
    assert read_json(run / "run.json")["stages"]["sft"]["seconds"] == results(run, "sft")["seconds"]
    assert weights(run) == weights(finished)


def test_a_stage_that_was_cut_off_under_another_section_starts_anew(
    finished, tmp_path, monkeypatch
):
    run = shutil.copytree(finished, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        _stops_after(patch, 3)
        go(tiny("sft.learning_rate=1e-3"), run)
    said = go(tiny(), run)
    assert "sft: run again, since its section of the recipe changed" in said
    assert folders(run) == {*STAGES, "sft.1", "sft.2", "reward.1", "rl.1"}
    assert weights(run) == weights(finished)


def _hash(stage: str, *overrides: str) -> str:
    return section_hash(resolve(tiny(*overrides))[0], stage)


def test_a_stage_that_narrows_nothing_has_the_hash_of_one_that_could_not():
    section = resolve(tiny())[0].to_dict()["sft"]
    assert section.pop("adapter") is section.pop("freeze") is None
    idle = [name for name in section if name.endswith("_every")]
    for name in (*idle, "from", "micro_batch_tokens", "checkpoint_seconds", "keep_checkpoints"):
        del section[name]
    assert _hash("sft") == sha256_json(section)


def test_every_change_of_an_adapter_or_of_what_is_frozen_repeats_its_stage_alone():
    some = ("sft.adapter.rank=4", "sft.adapter.targets=q_proj")
    narrowed = [
        (),
        some,
        ("sft.adapter.rank=8", some[1]),
        (*some, "sft.adapter.alpha=3"),
        (*some, "sft.adapter.kind=dora"),
        (*some, "sft.adapter.base=nf4"),
        (*some, "sft.adapter.dropout=0.1"),
        (some[0], "sft.adapter.targets=v_proj"),
        ("sft.freeze=model.norm.*",),
    ]
    assert len({_hash("sft", *overrides) for overrides in narrowed}) == len(narrowed)
    assert len({_hash("reward", *overrides) for overrides in narrowed}) == 1
