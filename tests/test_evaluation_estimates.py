"""Intervals hold what they promise, and are the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from fourstage.evaluation.diversity import distinct, diversity, overlap_of_groups, self_overlap
from fourstage.evaluation.estimates import Numbers, mean_of, ratio_of


def test_an_interval_is_that_of_scipy_within_its_noise():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    ours = mean_of(values)
    theirs = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000, random_state=0
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_an_interval_is_deterministic():
    values = np.random.default_rng(1).random(50)
    assert mean_of(values) == mean_of(values)


def test_a_ratio_resamples_items_as_wholes():
    found = ratio_of([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_numbers_survive_json():
    numbers = Numbers().add_means("a", [0.0, 1.0, 1.0], ["x", "y", "y"]).add("b", 3)
    numbers.extra["calibration"] = [[0.5, 0.5]]
    again = Numbers.from_json(numbers.to_json())
    assert again == numbers
    assert again.metrics["a/y"] == 1.0
    assert "b" not in again.intervals


def test_a_number_that_is_not_finite_is_left_out():
    assert Numbers().add("a", float("nan")).metrics == {}


def test_no_items_give_no_number():
    assert Numbers().add_means("a", []).metrics == {}


def test_distinct_counts_different_ngrams():
    assert distinct([[1, 2, 1, 2]], 1) == 0.5
    assert distinct([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct([[1]], 2) is None


def test_one_text_said_again_overlaps_wholly():
    assert self_overlap([[1, 2, 3], [1, 2, 3]]) == 1.0
    assert self_overlap([[1, 2, 3], [4, 5, 6]]) == 0.0
    assert self_overlap([[1, 2, 3]]) is None


def test_responses_are_compared_within_their_group_and_few_of_each():
    same, other = [1, 2, 3], [4, 5, 6]
    assert overlap_of_groups([same, same, other, other], 2) == 1.0
    assert overlap_of_groups([same, other, same, other], 2) == 0.0
    assert overlap_of_groups([same, same, same, other], 2) == 0.5
    assert overlap_of_groups([same, other], 1) is None and overlap_of_groups([], 2) is None
    assert overlap_of_groups([same] * 4 + [other] * 4, 8) == 1.0, "the first four alone"
    assert overlap_of_groups([same, same] * 64 + [same, other] * 9, 2) == 1.0


def test_a_narrower_model_is_less_diverse():
    wide = diversity([[[1, 2, 3], [4, 5, 6]]], "_base").metrics
    narrow = diversity([[[1, 2, 3], [1, 2, 3]]], "_rl").metrics
    assert narrow["distinct_2_rl"] < wide["distinct_2_base"]
    assert narrow["self_overlap_rl"] > wide["self_overlap_base"]
