"""The study of over-optimisation: what it draws and trains, keeps, finds, shows and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fourstage.errors import InputError
from fourstage.recipe import load, recipe_from
from fourstage.reporting.overoptimisation import short_rows, study_figures, unfitted
from fourstage.reporting.page import build_report
from fourstage.study import forks, samples
from fourstage.study.asked import Asked, numbers
from fourstage.study.bestofn import kl_bound, powers_of_two
from fourstage.study.overoptimisation import _fitted, _fitted_to_prompts, study
from fourstage.study.policies import Point, iterations
from fourstage.study.subject import open_subject
from pipeline_support import call, hurried, tiny, weights, whole_run

QUICK = Asked(samples=8, prompts=4, device="cpu")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return whole_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def subject(run, tmp_path):
    return open_subject(run, tmp_path / "study", None, 4, "cpu", print)


def studied(run: Path, out: Path, asked: Asked = QUICK) -> tuple[dict, list[str]]:
    said: list[str] = []
    with hurried():
        found = study(run, out, asked, said.append)
    return found, said


def test_a_study_finds_gold_and_proxy_of_each_n_and_of_the_runs_own_policy(run, tmp_path):
    found, _ = studied(run, tmp_path / "study")
    assert found == json.loads((tmp_path / "study" / "study.json").read_text())
    best = found["best_of_n"][0]
    assert best["name"] == "100 pairs" and best["n"] == [1, 2, 4, 8]
    assert best["kl"] == [kl_bound(n) for n in best["n"]]
    assert all(0 <= e <= b + 1e-9 for e, b in zip(best["kl_estimated"], best["kl"], strict=True))
    assert best["gold"][0] == found["initial"]["gold"]
    for each in best["gold"] + best["proxy"]:
        assert each[1] <= each[0] <= each[2]
    (policy,) = found["rl"]
    assert policy["name"] == "KL 0.05" and len(policy["points"]) == 2
    assert policy["points"][0][0] == 0
    page = (tmp_path / "study" / "study.html").read_text("utf-8")
    assert not re.search(r"(src|href)=|https?:|url\(http|@import|<script", page)


def test_the_same_command_draws_nothing_again_and_finds_the_same(run, tmp_path, monkeypatch):
    first, _ = studied(run, tmp_path)
    monkeypatch.setattr(samples, "Engine", None)
    second, said = studied(run, tmp_path)
    assert first == second and not any("drawing" in line for line in said)


def test_a_study_that_was_cut_off_goes_on_to_the_same_responses(run, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_BLOCK", 4)
    studied(run, tmp_path)
    rows = tmp_path / "samples" / "samples.jsonl"
    whole = rows.read_text("utf-8").splitlines()
    # Killed in the middle of a line.
    rows.write_text("\n".join(whole[:3]) + "\n" + whole[3][:40], "utf-8")
    _, said = studied(run, tmp_path)
    assert any(f"drawing {4 * (len(whole) - 3)} responses" in line for line in said)
    assert sorted(rows.read_text("utf-8").splitlines()) == sorted(whole)


def test_more_responses_and_prompts_add_to_those_that_are_kept(run, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_BLOCK", 4)
    studied(run, tmp_path, Asked(samples=4, prompts=2, device="cpu"))
    rows = tmp_path / "samples" / "samples.jsonl"
    before = rows.read_text("utf-8")
    _, said = studied(run, tmp_path)
    assert rows.read_text("utf-8").startswith(before)
    assert any("drawing 24 responses" in line for line in said)


def test_samples_of_another_model_are_set_aside(run, tmp_path):
    studied(run, tmp_path)
    told = json.loads((tmp_path / "samples" / "inputs.json").read_text())
    (tmp_path / "samples" / "inputs.json").write_text(json.dumps({**told, "model": "other"}))
    _, said = studied(run, tmp_path)
    assert any("samples.1" in line for line in said)
    assert (tmp_path / "samples.1" / "samples.jsonl").is_file()


def test_a_fork_is_the_same_experiment_but_for_what_is_varied(run, subject, tmp_path):
    """At the run's own numbers the forks end with the run's own bits."""
    same = forks.rl_recipe(subject, 0.05), forks.reward_recipe(subject, 100)
    for recipe, stage in zip(same, ("rl", "reward"), strict=True):
        with hurried():
            forks.train(recipe, tmp_path / stage, stage, lambda line: None)
        assert weights(tmp_path / stage)[stage] == weights(run)[stage]
        # The zero and the unit of the reward as well.
        configs = [folder / stage / "model" / "config.json" for folder in (tmp_path / stage, run)]
        assert configs[0].read_text() == configs[1].read_text()
    other = forks.rl_recipe(subject, 0.5).rl
    assert (other.kl_coefficient, other.steps) == (0.5, subject.recipe.rl.steps)
    half = forks.reward_recipe(subject, 50)
    assert (half.data.comparisons, half.reward.steps) == (50, 3)


def test_a_fork_mixes_pretraining_text_in_as_its_run_does(subject, tmp_path):
    values = forks.rl_recipe(subject, 0.5).to_dict()
    values["rl"]["pretraining_mix"] = 0.1
    with hurried():
        stage = forks.train(recipe_from(values), tmp_path, "rl", lambda line: None)
    assert "mix_nll" in (stage / "metrics.jsonl").read_text()


def test_coefficients_and_comparisons_are_trained_once_and_shown(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    asked = Asked(8, 4, coefficients=(0.05, 0.5), comparisons=(50, 100), device="cpu")
    found, _ = studied(copy, copy / "study", asked)
    assert [each["name"] for each in found["best_of_n"]] == ["100 pairs", "50 pairs"]
    # The run's own is not trained again.
    assert [each["name"] for each in found["rl"]] == ["KL 0.5", "KL 0.05"]
    assert sorted(path.name for path in (copy / "study" / "rl").iterdir()) == ["kl-0.5"]
    assert weights(copy) == weights(run)
    again, said = studied(copy, copy / "study", asked)
    assert again == found and sum("finished and unchanged, kept" in line for line in said) == 2
    assert "Best of n responses" in build_report(copy).read_text("utf-8")
    told = {**found, "models": {**found["models"], "reward_model": "another"}}
    (copy / "study" / "study.json").write_text(json.dumps(told))
    page = build_report(copy).read_text("utf-8")
    assert "of other models" in page and "Best of n responses" not in page


def test_rl_is_paid_by_each_reward_model_at_each_coefficient(run, tmp_path):
    asked = Asked(8, 4, comparisons=(50,), by_each=True, device="cpu")
    found, _ = studied(run, tmp_path, asked)
    own, other = found["rl"]
    assert [own["name"], other["name"]] == ["KL 0.05", "KL 0.05, 50 pairs"]
    (folder,) = (tmp_path / "rl").iterdir()
    paid_by = tmp_path / "reward" / "comparisons-50" / "reward" / "model"
    assert folder.name == "kl-0.05-50"
    assert load(str(folder / "recipe.yaml")).rl.reward_model == str(paid_by)
    assert {other["coefficient"], own["coefficient"]} == {0.05}
    # One law is of the policies that one reward model pays.
    assert found["rl_fit"] == studied(run, tmp_path / "alone")[0]["rl_fit"]
    again, said = studied(run, tmp_path, asked)
    assert again == found and not any("drawing" in line for line in said)


def test_rl_by_each_reward_model_wants_more_than_one(run, tmp_path):
    with pytest.raises(InputError, match="--rl-by-each: the run's own reward model is the only"):
        studied(run, tmp_path, Asked(8, 4, by_each=True, device="cpu"))


def test_a_reward_model_may_stand_for_gold(run, tmp_path):
    asked = Asked(8, 4, gold=run / "reward" / "model", device="cpu")
    found, _ = studied(run, tmp_path, asked)
    assert found["gold"] == "the reward model tiny"
    assert found["initial"]["gold"] != studied(run, tmp_path)[0]["initial"]["gold"]
    # What the world's checker said in training is no gold of this study.
    assert found["rl"][0]["fit"] is None and found["rl"][0]["end"]["gold"][0] != 0.15


def test_the_command_prints_the_laws_within_80_columns(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(
        capsys, "study", "overoptimisation", run, "--out", tmp_path, "--n", "8", "--prompts", "4"
    )
    assert code == 0 and "best of n, 100 pairs" in out and "RL, KL 0.05: not fitted" in out
    lines = out.splitlines()
    first = next(place for place, line in enumerate(lines) if "law of" in line)
    assert all(len(line.rstrip()) <= 80 for line in lines[first : first + 3])
    assert lines[-1] == str(tmp_path / "study.html")


def recipe_of(run: Path, folder: Path, *overrides: str) -> Path:
    """A copy of the run without its models, with another recipe."""
    for part in ("tokenizer", "data"):
        shutil.copytree(run / part, folder / part)
    for stage in ("sft", "reward"):
        shutil.copytree(run / stage / "model", folder / stage / "model")
    (folder / "recipe.yaml").write_text(tiny(*overrides).to_yaml())
    return folder


REFUSED = {
    "no reward model": ([], lambda run: shutil.rmtree(run / "reward"), "reward stage"),
    "no gold": ([], lambda run: _without_checkers(run), "--gold DIR"),
    "paid by rules": (
        ["rl.rewards=[length]"],
        lambda run: None,
        "rl.rewards alone",
    ),
    "paid by an environment": (
        ["rl.algorithm=grpo", "rl.environment.kind=guess"],
        lambda run: None,
        "paid by rl.environment",
    ),
}


def _without_checkers(run: Path) -> None:
    path = run / "data" / "rl" / "validation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "facts": {}}) + "\n" for row in rows))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_studied_is_refused_before_anything_is_drawn(case, run, tmp_path):
    overrides, change, words = REFUSED[case]
    copy = recipe_of(run, tmp_path / "run", *overrides)
    change(copy)
    with pytest.raises(InputError, match=words):
        studied(copy, tmp_path / "study")
    assert not (tmp_path / "study" / "samples").exists()


@pytest.mark.parametrize("option", ["gold", "rivals"])
def test_what_is_no_reward_model_is_refused_before_anything_is_drawn(option, run, tmp_path):
    folder = run / "sft" / "model"
    named = {"gold": folder} if option == "gold" else {"rivals": (folder,)}
    with pytest.raises(InputError, match=r"--(gold|reward-model) .*: no reward model; give"):
        studied(run, tmp_path, Asked(8, 4, device="cpu", **named))
    assert not (tmp_path / "samples").exists()


def test_a_run_without_a_kl_coefficient_is_not_trained_at_others(run, tmp_path):
    copy = recipe_of(run, tmp_path / "run", "rl.algorithm=raft", "rl.group=4")
    with pytest.raises(InputError, match="raft, which has no KL coefficient"):
        studied(copy, tmp_path / "study", Asked(8, 4, coefficients=(0.1,), device="cpu"))


def test_bad_numbers_are_told_with_what_to_write():
    assert numbers("0.2, 0.02,0.2", "--kl") == (0.02, 0.2)
    assert numbers("500,2_000", "--comparisons", int) == (500, 2000)
    with pytest.raises(InputError, match="--kl low: no number; write several with commas"):
        numbers("0.1,low", "--kl")
    with pytest.raises(InputError) as fault:
        Asked(samples=1, prompts=1, coefficients=(0.0,), comparisons=(0,))
    assert len(fault.value.faults) == 4


def test_an_iteration_is_one_point_however_many_rows_tell_of_it():
    rows = [
        {"step": 1, "iteration": 0, "kl": 0.0, "reward": 1.0, "gold": 0.5},
        {"step": 2, "iteration": 0, "kl": 0.0, "reward": 1.0, "gold": 0.5},
        {"step": 3, "iteration": 1, "kl": 0.4, "reward": 1.5},
        {"step": 3, "event": "spike"},
    ]
    assert iterations(rows) == [Point(0.0, 1.0, 0.5), Point(0.4, 1.5, None)]


def made_up() -> dict:
    """A study whose gold follows the laws, with a peak inside of what was measured."""
    sizes = powers_of_two(256)
    kl = [kl_bound(n) for n in sizes]
    truth = 0.5 + np.sqrt(kl) * (0.4 - 0.15 * np.sqrt(kl))
    golds = truth + np.random.default_rng(0).normal(0, 0.01, (64, len(kl)))
    golds[:, 0] = 0.5
    spread = [[v, v - 0.01, v + 0.01] for v in golds.mean(0).tolist()]
    best = {
        "name": "500 pairs",
        "comparisons": 500,
        "n": sizes,
        "kl": kl,
        "kl_estimated": kl,
        "gold": spread,
        "proxy": spread,
        **_fitted_to_prompts(kl, golds),
    }
    points = [[x, x, 0.5 + np.sqrt(x) * (0.3 - 0.2 * np.log(np.sqrt(x)))] for x in range(1, 60)]
    end = {name: [1.0, 0.9, 1.1] for name in ("kl", "proxy", "gold")}
    law = _fitted("rl", [(x, gold - 0.5) for x, _, gold in points], 0.5)
    rl = {"name": "KL 0.1", "coefficient": 0.1, "points": points, "end": end, **law}
    found = {"format": 1, "run": "made", "best_of_n": [best], "rl": [rl], "rl_fit": law}
    return {**found, "initial": {"gold": [0.5, 0.45, 0.55]}}


def test_laws_of_curves_that_peak_say_where():
    best, rl = short_rows(made_up())
    assert best[0] == "best of n, 500 pairs" and rl[0] == "RL, KL 0.1"
    # d = alpha / (2 beta) = 4 / 3; d = exp(alpha / beta - 1) = e^0.5.
    assert float(best[4]) == pytest.approx(16 / 9, abs=0.1)
    assert float(rl[4]) == pytest.approx(np.e, abs=0.02)
    assert not unfitted(made_up())


def test_the_figures_show_the_curves_and_the_laws():
    figures = [str(each) for each in study_figures(made_up())]
    assert len(figures) == 3
    assert all("dashed" in each and "SFT" in each for each in figures[:2])
    assert "500 pairs" in figures[0] and "KL 0.1" in figures[1] and "The laws" in figures[2]
    assert study_figures({}) == [] and study_figures({"format": 2}) == []
