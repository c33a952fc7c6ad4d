import itertools

import pytest

from fourstage.errors import InputError
from fourstage.training.schedule import SCHEDULES, learning_rate, rate_factor
from fourstage.training.settings import TrainSettings


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_linearly_and_reaches_the_peak_at_its_last_step(schedule):
    factors = [rate_factor(s, 100, schedule=schedule, warmup_steps=4) for s in range(4)]
    assert factors == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "constant"])
def test_decay_starts_at_the_peak_never_rises_and_ends_at_the_final_fraction(schedule):
    factors = [
        rate_factor(s, 50, schedule=schedule, warmup_steps=5, final_fraction=0.1)
        for s in range(5, 51)
    ]
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors))


def test_known_values():
    assert rate_factor(50, 100, schedule="cosine", final_fraction=0.1) == pytest.approx(0.55)
    assert rate_factor(25, 100, schedule="linear", final_fraction=0.0) == pytest.approx(0.75)
    assert rate_factor(79, 100, schedule="wsd", decay_fraction=0.2) == 1.0
    assert rate_factor(85, 100, schedule="wsd", final_fraction=0.0) == pytest.approx(0.5)
    assert rate_factor(99, 100, schedule="constant") == 1.0


def test_no_update_has_rate_zero_even_when_the_decay_goes_to_zero():
    for schedule in SCHEDULES:
        assert rate_factor(9, 10, schedule=schedule, final_fraction=0.0) > 0


def test_a_run_of_one_step_has_a_rate():
    for schedule in SCHEDULES:
        assert rate_factor(0, 1, schedule=schedule, warmup_steps=1) == 1.0


def test_the_learning_rate_scales_the_factor():
    settings = TrainSettings(steps=10, learning_rate=0.02, schedule="linear", final_fraction=0.0)
    assert learning_rate(settings, 5) == pytest.approx(0.01)


def test_an_unknown_schedule_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        TrainSettings(steps=1, learning_rate=1e-3, schedule="cosin")
