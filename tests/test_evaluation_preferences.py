"""Pair accuracy: the expected one, against brute force, and what a reward model cannot fake."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from evaluation_support import model, tokenizer
from fourstage.data.batch import Batch, Example
from fourstage.evaluation import preferences
from fourstage.evaluation.preferences import expected_accuracy, in_order, pair_accuracy
from fourstage.evaluation.scoring import raw_scores
from fourstage.worlds import calibration as world


def pairs(count: int = 60) -> list[dict]:
    found = [world.comparison(3, "validation", index) for index in range(count)]
    return [
        {
            "task": c.task.to_json(),
            "chosen": c.chosen,
            "rejected": c.rejected,
            "gold_chosen": c.gold_chosen,
            "gold_rejected": c.gold_rejected,
        }
        for c in found
    ]


def test_expected_accuracy_equals_brute_force():
    rng = random.Random(0)
    scores = np.array([[rng.choice([0, 1, 2]), rng.choice([0, 1, 2])] for _ in range(300)], float)
    golds = np.array([[rng.choice([0.0, 0.3, 1.0]), rng.choice([0.0, 0.3])] for _ in range(300)])
    found, ceiling = expected_accuracy(scores, golds, 8.0)
    for (a, b), (x, y), value, best in zip(scores, golds, found, ceiling, strict=True):
        p = 1 / (1 + math.exp(-8.0 * abs(x - y)))
        right = 0.5 if a == b else p if (a > b) == (x > y) else 1 - p
        assert value == pytest.approx(right)
        assert best == pytest.approx(p)


def test_expected_accuracy_is_the_mean_over_drawn_labels():
    golds = np.tile([0.9, 0.4], (1, 1))
    value, _ = expected_accuracy(np.array([[2.0, 1.0]]), golds, 8.0)
    drawn = np.random.default_rng(0).random(200_000) < 1 / (1 + math.exp(-8.0 * 0.5))
    assert value[0] == pytest.approx(drawn.mean(), abs=3e-3)


def test_equal_scores_are_half_right():
    assert in_order(np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]])).tolist() == [0.5]


def test_a_model_that_scores_by_gold_reaches_the_ceiling(monkeypatch):
    rows = pairs()
    golds = [gold for row in rows for gold in (row["gold_chosen"], row["gold_rejected"])]
    monkeypatch.setattr(preferences, "raw_scores", lambda model, rows: np.array(golds))
    metrics = pair_accuracy(None, tokenizer(), rows, world.PREFERENCE_SCALE).metrics
    assert metrics["pair_accuracy"] == pytest.approx(metrics["pair_accuracy_ceiling"])
    assert metrics["right_wrong_accuracy"] == 1.0


def test_a_flipped_model_falls_below_a_half(monkeypatch):
    rows = pairs()
    golds = [-gold for row in rows for gold in (row["gold_chosen"], row["gold_rejected"])]
    monkeypatch.setattr(preferences, "raw_scores", lambda model, rows: np.array(golds))
    metrics = pair_accuracy(None, tokenizer(), rows, world.PREFERENCE_SCALE).metrics
    assert metrics["pair_accuracy"] < 0.5
    assert metrics["right_wrong_accuracy"] == 0.0


def test_every_pair_is_judged_under_another_prompt_when_shuffled():
    for count in (2, 3, 50):
        other = preferences._derangement(count, 0)
        assert sorted(other) == list(range(count))
        assert all(index != value for index, value in enumerate(other))


def test_without_gold_the_label_is_the_order_to_find():
    rows = [{k: v for k, v in row.items() if not k.startswith("gold")} for row in pairs(20)]
    metrics = pair_accuracy(model(head="scalar"), tokenizer(), rows, 8.0).metrics
    assert 0 <= metrics["pair_accuracy"] <= 1
    assert "pair_accuracy_ceiling" not in metrics


def test_a_score_does_not_depend_on_what_else_is_scored():
    scorer = model(head="scalar")
    rows = [
        tokenizer().reward_row(
            [
                {"role": "user", "content": world.demonstration(0, i)[0].prompt},
                {"role": "assistant", "content": world.demonstration(0, i)[1]},
            ]
        )
        for i in range(40)
    ]
    together = raw_scores(scorer, rows)
    alone = np.concatenate([raw_scores(scorer, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    reverse = raw_scores(scorer, rows[::-1])[::-1]
    np.testing.assert_allclose(together, reverse, atol=1e-5)
    padded = Batch.rows([Example(np.array(rows[0])), Example(np.arange(5))])
    hidden = scorer(padded.tokens, padded.layout)[padded.last_cells]
    assert float(scorer.scores(hidden)[0]) == pytest.approx(alone[0], abs=1e-5)
