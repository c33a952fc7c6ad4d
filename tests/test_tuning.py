"""The range test: what is tried, what is proposed, and that nothing finished is lost."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.sources import DocumentSource
from fourstage.errors import Interrupted
from fourstage.parallel.group import Group
from fourstage.tuning import rangetest
from fourstage.tuning.fit import fit
from fourstage.tuning.grid import Outcome, Setting, around, beyond, settings
from fourstage.tuning.page import chart, drawing
from fourstage.tuning.proposal import propose, sweeps
from fourstage.tuning.rangetest import Asked, range_test, sweep
from pipeline_support import call, hurried, recipe_file, tiny, touched


def outcome(rate: float, loss: float | None, batch: int = 100, speed: float = 1000.0) -> Outcome:
    return Outcome(Setting(rate, batch), loss, 10, 1000, speed, 1.0)


def parabola(best: float, lowest: float = 2.0, bend: float = 0.02):
    """A trial whose loss is a parabola over the logarithm of the rate."""

    def trial(setting: Setting) -> Outcome:
        loss = lowest + bend * math.log2(setting.rate / best) ** 2
        return outcome(setting.rate, loss, setting.batch)

    return trial


@given(
    best=st.floats(3e-4, 3e-2),
    bend=st.floats(1e-3, 0.05),
    offset=st.floats(-1.9, 1.9),
)
def test_the_fit_finds_the_minimum_of_a_parabola(best, bend, offset):
    centre = best * 2**offset
    found = fit([(o.setting.rate, o.loss) for o in map(parabola(best, 2.0, bend), grid(centre))])
    assert found is not None
    assert found.rate == pytest.approx(best, rel=1e-3)
    assert found.loss == pytest.approx(2.0, abs=1e-6)
    assert found.low <= found.rate * 1.001 and found.rate <= found.high * 1.001


def grid(centre: float) -> list[Setting]:
    return settings(centre, 100, 5, 1)


def test_the_interval_of_the_rate_holds_it_as_often_as_it_says():
    import numpy as np

    random, inside = np.random.default_rng(0), 0
    for _ in range(300):
        rates = around(1e-3, 7)
        noise = random.normal(0, 2e-3, len(rates))
        # Within two octaves of the lowest all points take part, as in the range test itself.
        points = [
            (r, 2 + 0.01 * math.log2(r / 1e-3) ** 2 + e) for r, e in zip(rates, noise, strict=True)
        ]
        found = fit(points)
        assert found is not None
        inside += found.low <= 1e-3 <= found.high
    assert inside >= 0.88 * 300


def test_rates_that_diverge_do_not_bend_the_parabola():
    points = [(o.setting.rate, o.loss) for o in map(parabola(1e-3), grid(1e-3))]
    found = fit([*points, (8e-3, None), (16e-3, float("nan")), (32e-3, 11.0)])
    assert found is not None and found.rate == pytest.approx(1e-3, rel=1e-6)


def test_a_fit_of_nothing_is_none():
    assert fit([]) is None
    assert fit([(1e-3, None)]) is None
    assert propose([outcome(1e-3, None)], Setting(1e-3, 100)) is None


def test_a_best_rate_at_an_end_is_said_to_lie_perhaps_beyond():
    found = fit([(1e-3, 2.0), (2e-3, 2.1), (4e-3, 2.3)])
    assert found is not None and found.at_end and found.rate == 1e-3


def test_an_odd_grid_spans_a_factor_of_four_each_way_and_holds_the_centre():
    assert around(1.0, 5) == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert all(1.0 in around(1.0, count) for count in range(1, 9))
    assert settings(1e-3, 100, 5, 3)[0] == Setting(1e-3, 100)
    assert {each.batch for each in settings(1e-3, 100, 5, 3)} == {50, 100, 200}
    assert len(settings(1e-3, 1, 3, 3)) == 6, "a batch of none is no batch"


@pytest.mark.parametrize("best", [1e-3 / 30, 1e-3 * 30])
def test_rates_are_tried_further_out_where_the_best_lies_at_an_end(best):
    tried = sweep(grid(1e-3), parabola(best), say=lambda line: None)
    rates = sorted(each.setting.rate for each in tried)
    assert len(rates) == 7
    assert (rates[0] if best < 1e-3 else rates[-1]) == pytest.approx(
        1e-3 / 16 if best < 1e-3 else 16e-3
    )


def test_beyond_a_rate_that_diverged_nothing_is_tried():
    assert beyond([outcome(1e-3, 2.1), outcome(2e-3, 2.0), outcome(4e-3, None)]) is None
    assert beyond([outcome(1e-3, None), outcome(2e-3, None)]) == 5e-4
    assert beyond([outcome(1e-3, 2.1), outcome(2e-3, 2.0), outcome(4e-3, 2.2)]) is None


def test_trials_that_are_done_are_not_run_again():
    done = [outcome(s.rate, 2.0 + i) for i, s in enumerate(grid(1e-3)[:3])]
    asked: list[Setting] = []

    def trial(setting: Setting) -> Outcome:
        asked.append(setting)
        return outcome(setting.rate, 9.0)

    kept: list[Outcome] = []
    everything = sweep(grid(1e-3), trial, done, kept.append, lambda line: None)
    assert asked == grid(1e-3)[3:] and [each.setting for each in kept] == asked
    assert {each.setting for each in everything} >= set(grid(1e-3))


def test_the_fastest_of_batches_that_are_as_good_is_proposed():
    centre = Setting(1e-3, 100)

    def at(batch: int, lowest: float, speed: float) -> list[Outcome]:
        return [outcome(s.rate, parabola(2e-3, lowest)(s).loss, batch, speed) for s in grid(1e-3)]

    slow, same, fast = at(50, 2.0, 500.0), at(100, 2.004, 1000.0), at(200, 2.3, 1500.0)
    proposal = propose([*slow, *same, *fast], centre)
    assert proposal is not None
    assert (proposal.batch, proposal.rate) == (100, 2e-3)
    assert proposal.loses == pytest.approx((2.004 + 0.02) / 2.004 - 1)


def test_the_plot_is_a_drawing_of_its_own():
    from xml.etree import ElementTree

    tried = list(map(parabola(2e-3), grid(1e-3)))
    text = drawing(chart(sweeps(tried), Setting(1e-3, 100)))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count("<circle") == 5 and "<script" not in text and "href" not in text


# The very stage


def test(recipe, run, **asked) -> rangetest.Tuned:
    usual = {"rates": 3, "batches": 1, "amount": 2000}
    with hurried():
        return range_test(recipe, run, Asked(**(usual | asked)), Group(), lambda line: None)


test.__test__ = False  # a helper


def numbers(tuned: rangetest.Tuned) -> list[tuple]:
    """What a test finds, without its clocks."""
    return [(each.setting, each.loss, each.steps, each.tokens) for each in tuned.outcomes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned") / "tiny"
    return run, test(tiny(), run)


def test_trials_train_equal_tokens_to_the_end_of_their_schedule(whole):
    run, tuned = whole
    assert [each.steps for each in tuned.outcomes] == [math.ceil(2000 / 960)] * len(tuned.outcomes)
    assert len({each.loss for each in tuned.outcomes}) == len(tuned.outcomes)
    assert all(each.tokens_per_second > 0 for each in tuned.outcomes)
    record = json.loads((run / "tune/pretrain/tune.json").read_text())
    assert record["overrides"] == tuned.overrides
    assert record["proposal"]["rate"] == tuned.proposal.rate
    assert "<svg" in (run / "tune/pretrain/tune.html").read_text()
    assert not list((run / "tune").rglob("*.safetensors")), "weights of finished trials are freed"


def test_a_test_stopped_within_a_trial_goes_on_there_to_the_same_numbers(
    whole, tmp_path, monkeypatch
):
    _, wanted = whole
    run, batch, asked = tmp_path / "tiny", DocumentSource.batch, []

    def stopping(source, step):
        asked.append(step)
        if len(asked) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(source, step)

    monkeypatch.setattr(DocumentSource, "batch", stopping)
    with pytest.raises(Interrupted):
        test(tiny(), run)
    assert len(json.loads((run / "tune/pretrain/tune.json").read_text())["trials"]) == 1
    again = test(tiny(), run)
    assert numbers(again) == numbers(wanted)
    assert len(asked) == sum(each.steps for each in wanted.outcomes), "no step was taken twice"


def test_another_question_leaves_the_answer_to_the_first(whole, tmp_path):
    run, tuned = whole
    before = (run / "tune/pretrain/tune.json").read_bytes()
    test(tiny(), run, amount=1000)
    assert (run / "tune/pretrain.1/tune.json").read_bytes() == before
    assert len(tuned.outcomes) >= 3


def test_the_stages_of_a_run_are_not_touched(tmp_path):
    from pipeline_support import go

    recipe, run = tiny(), tmp_path / "tiny"
    go(recipe, run, only="pretrain")
    before = touched(run)
    test(recipe, run)
    test(recipe, run, stage="sft", amount=2000)
    assert touched(run) == before
    said = go(recipe, run, only="pretrain")
    assert "pretrain: finished and unchanged, kept" in said


def test_a_score_is_tried_beside_the_opinion_that_the_stage_trains_it_beside(tmp_path):
    from pipeline_support import go, told_by_likelihood

    run = tmp_path / "tiny"
    recipe = tiny(told_by_likelihood(tmp_path), "reward.likelihood=true")
    for stage in ("pretrain", "sft"):
        go(recipe, run, only=stage)
    tuned = test(recipe, run, stage="reward", amount=64)
    decided = list((run / "tune" / "reward").rglob("opinion.json"))
    assert len(decided) == len(tuned.outcomes)
    assert all(json.loads(each.read_text())["weight"] > 0.1 for each in decided)


def test_faults_are_told_in_a_line(tmp_path, capsys):
    recipe, run = recipe_file(tmp_path), tmp_path / "run"
    cases = [
        (("--stage", "rl"), "compare whole runs"),
        (("--stage", "pretain"), "did you mean 'pretrain'?"),
        (("--time", "soon"), "is not a time"),
        (("--time", "0"), "above 0"),
        (("--rates", "1"), "--rates"),
        (("--stage", "sft"), "run `fourstage pretrain` first"),
    ]
    for options, words in cases:
        code, _, err = call(capsys, "tune", recipe, "--out", run, *options)
        assert code == 2 and words in err, (options, err)


def test_the_command_prints_what_to_paste(tmp_path, capsys):
    recipe, run = recipe_file(tmp_path), tmp_path / "run"
    arguments = ("tune", recipe, "--out", run, "--rates", "3", "--batches", "1", "--time", "1s")
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    assert "pretrain.learning_rate=" in out and "pretrain.batch_tokens=960" in out
    assert "the proposal to" in out
