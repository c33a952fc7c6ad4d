"""What a reward model is diagnosed by: it accuses a cheat, and acquits one that scores by gold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation_support import tokenizer
from fourstage.evaluation import preferences
from fourstage.evaluation.calibration import (
    area_under_curve,
    calibration_error,
    preference_calibration,
    reliability,
)
from fourstage.evaluation.preferences import accuracy_by, accuracy_table, pair_accuracy
from fourstage.evaluation.resting import added_variance, partial_correlation, rests_on
from fourstage.worlds import calibration as world


def drawn(count: int, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, count))


def compared(count: int = 200) -> list[dict]:
    found = [world.comparison(3, "validation", index) for index in range(count)]
    names = ("chosen", "rejected", "gold_chosen", "gold_rejected")
    return [{"task": c.task.to_json(), **{name: getattr(c, name) for name in names}} for c in found]


def judged_by(monkeypatch, score) -> dict:
    """The metrics of a model that gives `score(row of tokens, gold)` to every answer."""
    rows = compared()
    golds = [gold for row in rows for gold in (row["gold_chosen"], row["gold_rejected"])]

    def raw_scores(model, tokens):
        return np.array([score(t, g) for t, g in zip(tokens, golds, strict=True)])

    monkeypatch.setattr(preferences, "raw_scores", raw_scores)
    return pair_accuracy(None, tokenizer(), rows, world.PREFERENCE_SCALE).metrics


def test_length_explains_nothing_of_a_model_that_scores_by_gold(monkeypatch):
    metrics = judged_by(monkeypatch, lambda row, gold: 8 * gold)
    assert abs(metrics["score_length_beyond_gold"]) < 1e-6
    assert metrics["score_variance_by_length"] < 1e-9
    # Better answers are longer here, so that without gold length would be accused.
    assert metrics["score_length_within_pairs"] > 0.1
    assert metrics["calibration_error"] < 1e-6


def test_the_variance_that_length_adds_is_that_of_both_fits():
    rng = drawn(500)
    gold, length = rng.normal(size=500), rng.normal(size=500)
    score = gold + 0.5 * length + 0.1 * rng.normal(size=500)
    columns = np.stack([gold, length], 1)
    both = np.linalg.solve(columns.T @ columns, columns.T @ score)
    one = (gold @ score) / (gold @ gold)
    squares = [np.square(score - fitted).sum() for fitted in (one * gold, columns @ both)]
    expected = (squares[0] - squares[1]) / np.square(score).sum()
    assert added_variance(score, length, gold) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected < 0.3
    assert added_variance(gold, length, gold) == pytest.approx(0.0, abs=1e-12)


def test_a_model_that_counts_tokens_is_accused(monkeypatch):
    metrics = judged_by(monkeypatch, lambda row, gold: 8 * gold + 0.1 * len(row))
    assert metrics["score_length_beyond_gold"] > 0.99
    # Tokens add to a score that gold explains nearly whole.
    little = judged_by(monkeypatch, lambda row, gold: 8 * gold + 0.01 * len(row))
    assert little["score_length_beyond_gold"] > 0.99
    assert 0 < little["score_variance_by_length"] < 0.01 < metrics["score_variance_by_length"]
    counted = judged_by(monkeypatch, lambda row, gold: len(row))
    assert counted["longer_better_accuracy"] == 1
    assert counted["shorter_better_accuracy"] == 0


def test_a_model_too_sure_of_itself_has_a_calibration_error(monkeypatch):
    sure = judged_by(monkeypatch, lambda row, gold: 40 * gold)["calibration_error"]
    unsure = judged_by(monkeypatch, lambda row, gold: 2 * gold)["calibration_error"]
    assert sure > 0.05 and unsure > 0.05


def test_a_partial_correlation_is_that_of_residuals():
    rng = drawn(400)
    given = rng.normal(size=400)
    first = 0.6 * given + rng.normal(size=400)
    second = -0.4 * given + 0.5 * first + rng.normal(size=400)
    # Both orders of each pair, so that the means are zero.
    x, y, z = (np.concatenate([column, -column]) for column in (first, second, given))

    def residual(column: np.ndarray) -> np.ndarray:
        return column - z * (column @ z) / (z @ z)

    expected = np.corrcoef(residual(x), residual(y))[0, 1]
    found = partial_correlation(first, second, given)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    plain = partial_correlation(first, second)
    assert plain.value == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_the_interval_of_a_correlation_is_about_that_of_fisher():
    rng = drawn(500)
    first = rng.normal(size=500)
    second = 0.3 * first + rng.normal(size=500)
    found = partial_correlation(first, second)
    middle, half = math.atanh(found.value), 1.96 / math.sqrt(500)
    assert found.low == pytest.approx(math.tanh(middle - half), abs=0.02)
    assert found.high == pytest.approx(math.tanh(middle + half), abs=0.02)


def test_what_differs_in_no_pair_is_left_out():
    texts = [("a", "b"), ("c\n- d", "e")]
    numbers = rests_on(np.array([[1.0, 0.0], [2.0, 1.0]]), np.ones((2, 2)), texts).metrics
    assert "score_length_within_pairs" not in numbers
    assert "score_format_within_pairs/digits" not in numbers
    assert {"score_format_within_pairs/lines", "score_format_within_pairs/lists"} <= set(numbers)


def test_calibration_equals_a_loop_over_bins():
    rng = drawn(1000)
    predicted = rng.uniform(0.5, 1, 1000)
    observed = (rng.uniform(size=1000) < predicted**2).astype(float)
    order = sorted(range(1000), key=lambda i: predicted[i])
    total, table = 0.0, []
    for start in range(0, 1000, 100):
        part = order[start : start + 100]
        p, o = (sum(column[i] for i in part) / 100 for column in (predicted, observed))
        table.append([p, o])
        total += abs(p - o) / 10
    assert calibration_error(predicted, observed) == pytest.approx(total)
    np.testing.assert_allclose(reliability(predicted, observed), table)


def test_labels_drawn_with_the_models_own_probabilities_are_calibrated():
    rng = drawn(20_000)
    gap = rng.normal(size=20_000) * 2
    chosen_first = rng.uniform(size=20_000) < 1 / (1 + np.exp(-gap))
    gap = np.where(chosen_first, gap, -gap)
    table, error = preference_calibration(np.stack([gap, np.zeros_like(gap)], 1))
    assert error < 0.02
    assert all(abs(predicted - observed) < 0.05 for predicted, observed in table)


def test_the_area_under_the_curve_counts_pairs():
    rng = drawn(60)
    scores, good = rng.integers(0, 6, 60).astype(float), rng.uniform(size=60) < 0.4
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[good] for b in scores[~good]]
    assert area_under_curve(scores, good) == pytest.approx(sum(wins) / len(wins))
    with pytest.raises(ValueError, match="good and bad"):
        area_under_curve(scores, np.ones(60, bool))


def test_accuracy_by_bins_holds_every_pair_once():
    rng = drawn(300)
    by, found = rng.integers(0, 7, 300).astype(float), rng.integers(0, 2, 300).astype(float)
    table = accuracy_table(by, found)
    assert sum(row["pairs"] for row in table) == 300
    assert sum(row["pairs"] * row["accuracy"] for row in table) == pytest.approx(found.sum())
    for row in table:
        inside = (by >= row["from"]) & (by <= row["to"])
        assert row["pairs"] == inside.sum()
        assert row["accuracy"] == pytest.approx(found[inside].mean())
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]


def test_told_margins_sort_pairs_where_gold_is_not_known():
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    margins = np.array([0.1, 0.2, 3.0, 4.0])
    lengths = np.array([[5, 4], [4, 5], [9, 2], [2, 9]], float)
    numbers = accuracy_by(scores, lengths, None, margins)
    table = numbers.extra["accuracy_by_margin"]
    assert table[0]["from"] == 0.1 and table[-1]["to"] == 4.0
    assert numbers.metrics["longer_better_accuracy"] == 1.0
    assert numbers.metrics["shorter_better_accuracy"] == 0.5
