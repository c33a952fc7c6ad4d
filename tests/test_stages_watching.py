"""A reward model is watched while a policy learns from it: numbers, alarms, and no bit moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from evaluation_support import model, tokenizer
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.drift import Familiar, beside_demonstrations
from fourstage.evaluation.scoring import scores
from fourstage.files import read_json
from fourstage.interchange import load_model
from fourstage.model.ensemble import Ensemble
from fourstage.reporting.alarms import Alarm, Lookout
from fourstage.stages import alarming
from fourstage.stages.watching import Watch, outside, told_of
from pipeline_support import go, results, rows, tiny, weights, whole_run
from test_stages_rollouts import source


@pytest.fixture
def run(tmp_path_factory, tmp_path) -> Path:
    return shutil.copytree(whole_run(tmp_path_factory.getbasetemp()), tmp_path / "run")


def watched(**more):
    """A source whose judge watches, after an iteration, and what it drew."""
    made = source(rollout_batch=8)
    kept, real = [], made.drawer.draw
    made.drawer.draw = lambda iteration, judge: kept.append(real(iteration, judge)) or kept[-1]
    made.judge.watch = Watch(**({"familiar": Familiar(0.0, 0.0), "range": (-0.1, 0.1)} | more))
    made.roll(0)
    return made, kept[0]


def test_scores_outside_of_the_familiar_range_are_counted():
    learned = sorted(watched()[1].judged.learned)
    made, drawn = watched(range=(learned[2], learned[-2]))
    assert made.numbers["proxy_unfamiliar"] == pytest.approx(3 / 8)
    # The penalty of an answer without an end is no score of the reward model's.
    assert sorted(drawn.judged.learned) == learned != sorted(drawn.scores.tolist())
    found = outside(np.array([0.0, 1.0, np.nan, np.inf]), (-0.5, 0.5))
    assert found.tolist() == [False, True, True, True]


def test_the_range_holds_all_but_one_in_fifty():
    told = told_of(Familiar(1.5, 0.0), np.zeros(3), np.arange(1001.0))
    assert told["range"] == [10.0, 990.0] and told["high"] == 1.5
    assert told_of(Familiar(0.0, 0.0), np.arange(101.0))["range"] == [1.0, 99.0]


def test_a_second_reward_model_says_what_it_says_and_pays_nothing():
    other = model(7, head="scalar")
    made, drawn = watched(watcher=other)
    expected = scores(other, reward_rows(tokenizer(), drawn.responses)).mean()
    assert made.numbers["watch_reward"] == pytest.approx(expected)
    plain, drawn_without = watched()
    assert "watch_reward" not in plain.numbers
    assert drawn.scores.tolist() == drawn_without.scores.tolist()


def test_members_of_an_ensemble_are_compared_with_what_they_said_before():
    made = source(rollout_batch=8)
    members = [model(seed, head="scalar") for seed in (3, 4)]
    ensemble = Ensemble(members, 1.0)
    made.judge.reward_model = ensemble
    made.judge.watch = Watch(Familiar(0.0, 0.5), (-1.0, 1.0))
    responses = made.drawer.respond(made.drawer.chosen(0, 8), 0)
    numbers = made.judge.numbers(made.judge([made.drawer.tasks[0]] * 8, responses), responses)
    each = np.stack([scores(m, reward_rows(tokenizer(), responses)) for m in members], 1)
    expected = np.abs(each[:, 0] - each[:, 1]).mean() / 2 / 0.5
    assert numbers["proxy_disagreement"] == pytest.approx(expected, rel=1e-4)


def test_demonstrations_stand_beside_the_responses_to_their_prompts():
    shown, drawn = np.array([1.0, 0.0, 2.0]), np.array([0.0, 0.0, 3.0])
    found = beside_demonstrations(shown, drawn).metrics
    assert found["demonstration_over_policy"] == pytest.approx(0.5)
    assert found["demonstration_score"] == found["policy_score"] == pytest.approx(1.0)


def test_a_run_tells_how_its_reward_model_fares(run):
    found = results(run, "rl")
    numbers = found["metrics"]
    for name in ("proxy_high_share", "proxy_gold_correlation", "proxy_gold_correlation_sft",
                 "demonstration_score", "policy_score", "demonstration_over_policy"):  # fmt: skip
        assert name in numbers, name
    store = Store.open(run / "data" / "reward" / "train")
    every = [store[index].tokens.tolist() for index in range(len(store))]
    known = np.quantile(scores(load_model(run / "reward" / "model").eval(), every), (0.01, 0.99))
    assert found["familiar"]["range"] == pytest.approx(known.tolist(), abs=1e-4)
    shares = [row["proxy_unfamiliar"] for row in rows(run, "rl") if "iteration" in row]
    assert shares and all(0 <= share <= 1 for share in shares)
    page = (run / "report.html").read_text("utf-8")
    assert "share of unfamiliar scores" in page and "Demonstrations score" in page


def test_watching_moves_no_bit_and_is_recorded(run):
    before = weights(run)
    watcher = run.with_name("watcher")
    shutil.copytree(run / "reward" / "model", watcher)
    go(tiny(f"rl.watch_model={watcher}"), run)
    assert weights(run) == before
    assert "watch_reward" in rows(run, "rl")[0]
    parents = read_json(run / "run.json")["stages"]["rl"]["inputs"]["parents"]
    assert parents["watch_model"] == parents["reward_model"]
    with pytest.raises(InputError, match=r"rl.watch_model=\S+ is no reward model"):
        go(tiny(f"rl.watch_model={run / 'sft' / 'model'}"), run)


@pytest.mark.parametrize("told", [
    ("rl.algorithm=dpo",),
    ("rl.algorithm=kto", "rl.online=true", "rl.minibatches=1"),
    ("rl.algorithm=raft",),
])  # fmt: skip
def test_every_kind_of_learning_says_an_alarm_as_soon_as_a_row_raises_it(run, monkeypatch, told):
    class Raised(Lookout):
        def __call__(self, row):
            return [Alarm("kl", row["step"], None, "seen", "do this")] if row["step"] == 1 else []

    monkeypatch.setattr(alarming, "Lookout", Raised)
    said = go(tiny(*told, "rl.steps=2", "rl.sample_every=0"), run)
    line = "rl: alarm at step 1: seen; do this"
    last = next(index for index, each in enumerate(said) if each.startswith("rl  step 2/2"))
    assert said.count(line) == 1 and said.index(line) < last
