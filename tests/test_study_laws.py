"""Best-of-n against enumeration, and the laws of over-optimisation against themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.study.bestofn import (
    estimated_kl,
    kl_bound,
    kl_of_best,
    mean_of_best,
    order_weights,
    powers_of_two,
)
from fourstage.study.laws import Fit, TooFewPoints, fit, with_intervals


def by_enumeration(proxy, values, n: int) -> float:
    """The mean over all subsets; a tie is broken by every order of the responses alike."""
    means = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        best = [values[i] for i in subset if proxy[i] == top]
        means.append(sum(best) / len(best))
    return sum(means) / len(means)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=7))
def test_the_estimator_is_the_mean_over_all_subsets_with_ties(pairs):
    proxy, values = np.array(pairs, float).T
    for n in range(1, len(pairs) + 1):
        found = mean_of_best(proxy[None], values[None], n)[0]
        assert found == pytest.approx(by_enumeration(proxy, values, n), abs=1e-9)


def test_the_best_of_one_is_the_mean_and_the_best_of_all_the_highest():
    draw = np.random.default_rng(0)
    proxy, values = draw.normal(size=(3, 50)), draw.normal(size=(3, 50))
    assert np.allclose(mean_of_best(proxy, values, 1), values.mean(1))
    assert np.allclose(mean_of_best(proxy, proxy, 50), proxy.max(1))


def test_weights_of_thousands_sum_to_one():
    assert order_weights(5000, 2048).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="from 1 to 4"):
        order_weights(4, 5)


def test_the_expected_best_of_uniform_numbers_is_that_of_theory():
    """Of n numbers uniform on 0 to 1 the highest is n / (n + 1) on average."""
    drawn = np.random.default_rng(0).random((400, 256))
    for n in powers_of_two(64):
        assert mean_of_best(drawn, drawn, n).mean() == pytest.approx(n / (n + 1), abs=0.01)


DISTRIBUTION = {"a": (0.5, 1.0), "b": (0.2, 3.0), "c": (0.25, 2.0), "d": (0.05, 3.0)}


def best_of_n(n: int) -> dict[str, float]:
    """The exact distribution of the best of n, by every sequence of n responses."""
    found = dict.fromkeys(DISTRIBUTION, 0.0)
    for sequence in itertools.product(DISTRIBUTION, repeat=n):
        probability = math.prod(DISTRIBUTION[each][0] for each in sequence)
        top = max(DISTRIBUTION[each][1] for each in sequence)
        best = [each for each in sequence if DISTRIBUTION[each][1] == top]
        for each in best:
            found[each] += probability / len(best)
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_kl_of_the_best_of_n_is_exact_and_below_the_bound(n):
    exact = sum(
        q * math.log(q / DISTRIBUTION[each][0]) for each, q in best_of_n(n).items() if q > 0
    )
    # By rising value: a, c, then b and d together.
    assert kl_of_best(np.array([0.5, 0.25, 0.25]), n) == pytest.approx(exact, abs=1e-12)
    assert exact <= kl_bound(n) + 1e-12
    assert n == 1 or exact < kl_bound(n)


def test_without_ties_the_bound_is_the_kl():
    fine = np.full(100_000, 1e-5)
    for n in (2, 16, 64):
        assert kl_of_best(fine, n) == pytest.approx(kl_bound(n), abs=2e-3)


def test_the_kl_is_estimated_from_what_was_drawn():
    drawn = np.random.default_rng(1).choice([1.0, 2.0, 3.0], p=[0.5, 0.25, 0.25], size=(200, 256))
    for n in (2, 8):
        exact = kl_of_best(np.array([0.5, 0.25, 0.25]), n)
        assert estimated_kl(drawn, n).mean() == pytest.approx(exact, abs=0.01)
    assert np.all(estimated_kl(np.ones((2, 9)), 8) == 0)


LAWS = {
    "best_of_n": lambda kl: math.sqrt(kl) * (0.6 - 0.1 * math.sqrt(kl)),
    "rl": lambda kl: math.sqrt(kl) * (0.6 - 0.1 * math.log(math.sqrt(kl))),
}


@pytest.mark.parametrize("law", LAWS)
def test_a_fit_recovers_its_law_and_where_gold_peaks(law):
    points = [(kl, LAWS[law](kl)) for kl in (0.01, 0.2, 1.0, 4.0, 30.0)]
    found = fit(law, points)
    assert (found.alpha, found.beta) == (pytest.approx(0.6), pytest.approx(0.1))
    assert found.residual < 1e-9 and found.points == 5 and found.reached == 30
    assert found.gain(4.0) == pytest.approx(LAWS[law](4.0)) and found.gain(0.0) == 0
    here = found.gain(found.peak)
    assert here > found.gain(0.98 * found.peak) and here > found.gain(1.02 * found.peak)
    assert Fit.from_json(found.to_json()) == found


def test_about_95_of_100_intervals_hold_the_truth():
    kl = [kl_bound(n) for n in powers_of_two(256)[1:]]
    truth = np.array([LAWS["best_of_n"](each) for each in kl])
    held = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        prompts = truth + draw.normal(0, 0.2, (80, len(kl)))
        found = fit("best_of_n", list(zip(kl, prompts.mean(0), strict=True)))
        rows = draw.integers(0, 80, (200, 80))
        told = with_intervals(found, kl, prompts[rows].mean(1)).intervals
        held += [told["alpha"][0] < 0.6 < told["alpha"][1], told["beta"][0] < 0.1 < told["beta"][1]]
    assert 0.85 < np.mean(held) < 1


def test_gold_that_never_falls_has_no_peak():
    assert fit("best_of_n", [(kl, math.sqrt(kl) + kl) for kl in (1.0, 2.0, 3.0)]).peak is None
    assert fit("best_of_n", [(kl, -math.sqrt(kl) - kl) for kl in (1.0, 2.0, 3.0)]).peak == 0


def test_too_few_points_are_no_law():
    with pytest.raises(TooFewPoints, match="2 different distances above 0"):
        fit("rl", [(0.0, 0.0), (-0.1, 0.3), (1.0, 0.2), (1.0, 0.3), (2.0, 0.4)])
