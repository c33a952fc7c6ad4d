"""Agreement of labellers and with gold, against brute force."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from fourstage.labelling.agreement import agreement, gold_agreement, kappa_of


def by_hand(first: list[str], second: list[str]) -> float:
    """Cohen's kappa as the paper writes it, of two lists of categories."""
    count = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    chance = sum(
        first.count(each) / count * second.count(each) / count for each in {*first, *second}
    )
    return (observed - chance) / (1 - chance)


def told(ranks: dict[str, tuple[int, ...]], items: list[str]) -> list[str]:
    return [
        "tie" if a == b else "<" if a < b else ">"
        for item in items
        for a, b in itertools.combinations(ranks[item], 2)
    ]


def drawn(seed: int, items: int, k: int) -> dict[str, tuple[int, ...]]:
    draw = random.Random(seed)
    return {str(n): tuple(draw.choice((1, 2, 3)) for _ in range(k)) for n in range(items)}


@pytest.mark.parametrize("k", [2, 3])
def test_agreement_and_kappa_are_those_of_the_paper(k):
    one, other = drawn(1, 60, k), drawn(2, 80, k)
    for item in list(one)[::2]:
        other[item] = one[item]
    one = {item: one[item] for item in list(one)[10:]}
    both = sorted(one.keys() & other.keys())
    first, second = told(one, both), told(other, both)
    found = agreement(one, other)
    pairs = len(first)
    same = sum(a == b for a, b in zip(first, second, strict=True))
    decided = [(a, b) for a, b in zip(first, second, strict=True) if "tie" not in (a, b)]
    assert found.metrics["pairs_both"] == pairs
    assert found.metrics["seen_by_both"] == pytest.approx(pairs / (80 * k * (k - 1) / 2))
    assert found.metrics["agreement"] == pytest.approx(same / pairs)
    agreed = sum(a == b for a, b in decided) / len(decided)
    assert found.metrics["agreement_decided"] == pytest.approx(agreed)
    assert found.metrics["kappa"] == pytest.approx(by_hand(first, second))
    assert found.metrics["ties_first"] == pytest.approx(first.count("tie") / pairs)
    assert found.metrics["ties_second"] == pytest.approx(second.count("tie") / pairs)
    low, high = found.intervals["kappa"]
    assert low < found.metrics["kappa"] < high


def test_kappas_interval_holds_the_truth_as_often_as_it_says():
    """Two labellers see the same truth, each errs in a fifth of the cases: kappa is known."""
    truth = by_probability = None
    confusion = np.zeros((3, 3))
    for true, a, b in itertools.product(range(2), range(2), range(2)):
        confusion[a, b] += 0.5 * (0.8 if a == true else 0.2) * (0.8 if b == true else 0.2)
    by_probability = np.trace(confusion)
    truth = (by_probability - 0.5) / 0.5
    draw = np.random.default_rng(0)
    held = 0
    for turn in range(200):
        true = draw.integers(0, 2, 150)
        a, b = (np.where(draw.random(150) < 0.8, true, 1 - true) for _ in range(2))
        counts = np.zeros((150, 3, 3))
        counts[np.arange(150), a, b] = 1
        found = kappa_of(counts, seed=turn)
        held += found.low <= truth <= found.high
    assert 0.90 < held / 200 <= 0.99


def test_the_same_labels_agree_wholly_and_one_sided_ones_have_no_kappa():
    one = drawn(3, 30, 2)
    assert agreement(one, one).metrics["kappa"] == 1.0
    always = dict.fromkeys(one, (1, 2))
    found = agreement(always, always).metrics
    assert found["agreement"] == 1.0 and "kappa" not in found


def test_labellers_with_nothing_in_common_are_told_so():
    found = agreement({"a": (1, 2)}, {"b": (1, 2)}).metrics
    assert found == {"pairs_both": 0.0, "seen_by_both": 0.0}


def test_gold_counts_only_where_both_prefer_one():
    ranks = {"a": (1, 2), "b": (2, 1), "c": (1, 1), "d": (1, 2), "e": (1, 2), "f": (1, 2, 3)}
    golds = {"a": [0.9, 0.1], "b": [0.9, 0.1], "c": [0.9, 0.1], "d": [0.5, 0.5]}
    golds |= {"f": [0.3, 0.2, 0.9]}
    found = gold_agreement(ranks, golds)
    # a agrees, b does not; of f's three pairs the first agrees.
    assert found["pairs"] == 5 and found["agreement"].value == pytest.approx(2 / 5)
    assert found["ties"] == 1 and found["gold_equal"] == 1
