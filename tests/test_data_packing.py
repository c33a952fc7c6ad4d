"""Packing: every example in one bin, few bins, and an honest count of what stays empty."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.batch import Batch, Example
from fourstage.data.packing import best_fit, next_fit, packing_report, waste
from fourstage.errors import InputError

lengths_of = st.lists(st.integers(1, 40), max_size=40)
quick = settings(max_examples=100, deadline=None)


def _fewest(lengths: list[int], capacity: int) -> int:
    """The fewest bins, by trying every assignment."""
    for bins in range(1, len(lengths) + 1):
        for chosen in product(range(bins), repeat=len(lengths)):
            if (np.bincount(chosen, lengths, bins) <= capacity).all():
                return bins
    return 0


def _by_hand(lengths: list[int], capacity: int) -> list[int]:
    """Loads of best-fit decreasing as its definition has it, by looking at every bin."""
    loads: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, load in enumerate(loads) if load + length <= capacity]
        if fitting:
            loads[max(fitting, key=lambda i: loads[i])] += length
        else:
            loads.append(length)
    return sorted(loads)


@quick
@given(lengths_of, st.integers(1, 60))
def test_bins_hold_every_example_once_and_no_more_than_fits(lengths, capacity) -> None:
    for pack in (best_fit, next_fit):
        bins = pack(lengths, capacity)
        assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
        for members in bins:
            assert members == sorted(members)
            assert len(members) == 1 or sum(lengths[item] for item in members) <= capacity


@quick
@given(lengths_of, st.integers(1, 60))
def test_best_fit_is_the_plain_algorithm(lengths, capacity) -> None:
    bins = best_fit(lengths, capacity)
    loads = sorted(sum(lengths[item] for item in members) for members in bins)
    assert loads == _by_hand(lengths, capacity)
    assert bins == best_fit(list(lengths), capacity)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=6), st.integers(10, 15))
def test_best_fit_is_near_the_fewest_bins(lengths, capacity) -> None:
    assert len(best_fit(lengths, capacity)) <= 11 / 9 * _fewest(lengths, capacity) + 4


def test_waste_is_the_share_of_empty_cells() -> None:
    assert waste([6, 4, 5], [[0, 1], [2]], 10) == pytest.approx(0.25)
    assert waste([12, 5], [[0], [1]], 10) == pytest.approx(5 / 22)
    assert waste([], [], 10) == 0


def test_a_report_compares_three_ways() -> None:
    report = packing_report([7, 5, 3, 5, 12], 10)
    assert report["examples"] == 5 and report["cells"] == 32 and report["longer"] == 1
    assert report["best_fit"] == {"rows": 3, "waste": 0.0}
    assert report["next_fit"] == {"rows": 4, "waste": pytest.approx(10 / 42)}
    assert report["padding"] == {"rows": 5, "waste": pytest.approx(1 - 32 / 60)}
    assert packing_report([], 10)["best_fit"] == {"rows": 0, "waste": 0.0}
    with pytest.raises(InputError, match="at least 1"):
        packing_report([3], 0)


def _batch(lengths: list[int], group: list[int] | None = None) -> Batch:
    starts = np.cumsum([0, *lengths])
    return Batch.rows([Example(np.arange(a, a + n)) for a, n in zip(starts, lengths)], group)  # noqa: B905


@quick
@given(st.lists(st.integers(1, 20), min_size=1, max_size=25), st.integers(1, 60))
def test_micro_batches_hold_every_document_once(lengths, most) -> None:
    parts = _batch(lengths).split(most)
    tokens = torch.cat([part.tokens for part in parts])
    assert sorted(tokens.tolist()) == list(range(sum(lengths)))
    assert all(part.cells <= most or len(part.lengths) == 1 for part in parts)


@quick
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1), st.integers(1, 60))
def test_micro_batches_keep_groups_together_in_their_order(documents, most) -> None:
    lengths, group = [n for n, _ in documents], [g for _, g in documents]
    batch = _batch(lengths, group)
    homes: dict[int, int] = {}
    for number, part in enumerate(batch.split(most)):
        ids = part.documents["group"].tolist()
        assert all(homes.setdefault(one, number) == number for one in ids)
        starts = np.cumsum([0, *part.lengths])[:-1]
        for one in set(ids):
            firsts = [int(part.tokens[a]) for a, g in zip(starts, ids, strict=True) if g == one]
            assert firsts == sorted(firsts)
