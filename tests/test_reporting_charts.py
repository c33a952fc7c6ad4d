"""Scales, charts and numbers."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.reporting.charts import Chart, Reference, Series, smoothed, spread, thinned
from fourstage.reporting.html import Markup, escape, join, tag
from fourstage.reporting.numbers import Number, compact, duration, figures, measured, power_of_ten
from fourstage.reporting.scales import Scale, linear_ticks, log_ticks, padded, tick_texts

finite = st.floats(-1e9, 1e9)


@given(st.lists(finite, min_size=1, max_size=50))
def test_a_padded_range_holds_all_values_and_is_never_empty(values):
    low, high = padded(values)
    assert low <= min(values) and high >= max(values) and low < high


@given(finite, st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_lie_in_their_range_and_are_few(low, width, count):
    high = low + width
    if high - low < 1e-7 * abs(low):
        return
    ticks = linear_ticks(low, high, count)
    air = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - air <= tick <= high + air for tick in ticks)
    assert len(ticks) <= 2 * count + 1
    assert ticks == sorted(ticks)


@given(st.floats(1e-6, 1e6), st.floats(3, 1e9))
def test_ticks_of_a_logarithmic_axis_lie_in_their_range(low, factor):
    ticks = log_ticks(low, low * factor, 6)
    assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in ticks)


def test_a_scale_maps_its_ends_onto_the_drawing():
    assert Scale(0, 10, 100, 200)(5) == 150
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)


def test_tick_texts_share_their_decimals():
    assert tick_texts([0.5, 1.0, 1.5]) == ["0.5", "1.0", "1.5"]
    assert tick_texts([0, 5000, 10000]) == ["0", "5k", "10k"]


@given(st.lists(st.floats(0, 300), max_size=8).map(sorted), st.floats(1, 20))
def test_labels_never_cover_one_another_and_keep_their_order(places, gap):
    moved = spread(places, gap)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(moved))
    assert len(moved) == len(places)


def test_thinning_keeps_the_mean_and_the_last_point():
    points = [(float(x), float(x % 2)) for x in range(10_001)]
    kept = thinned(points, 400)
    assert len(kept) <= 402
    assert kept[-1] == points[-1]
    assert sum(y for _, y in kept) / len(kept) == pytest.approx(0.5, abs=0.05)


def test_smoothing_leaves_the_first_point_and_a_constant_alone():
    assert smoothed([(0, 9), (1, 1), (2, 1), (3, 1)], 2)[0] == (0, 9)
    assert smoothed([(0, 2), (1, 2), (2, 2)], 1) == [(0, 2), (1, 2), (2, 2)]


def test_a_chart_draws_finite_coordinates_whatever_the_values():
    points = [(1, math.nan), (2, 1e308), (3, 0.0), (4, math.inf), (5, -3.0)]
    for x_log in (False, True):
        for y_log in (False, True):
            chart = Chart([Series("a", points)], "x", "y", "d", x_log=x_log, y_log=y_log)
            drawing = chart.svg()
            assert "nan" not in drawing and "inf" not in drawing


def test_a_chart_of_one_value_and_a_reference_at_it_can_be_drawn():
    chart = Chart([Series("a", [(0, 1.0), (1, 1.0)])], "x", "y", "d", [Reference("floor", 1.0)])
    assert re.search(r'class="reference"', chart.svg())


def test_strings_are_escaped_and_markup_is_not():
    assert tag("b", "<i>&\"'") == "<b>&lt;i&gt;&amp;&quot;&#x27;</b>"
    assert tag("b", Markup("<i></i>")) == "<b><i></i></b>"
    assert 'title="&quot;&gt;"' in tag("b", title='">')
    assert join(None, ["a", [1]], "<") == "a1&lt;"
    assert "\x07" not in escape("\x07")


def test_numbers_are_written_as_a_reader_wants_them():
    assert figures(0.12345) == "0.123"
    assert figures(1234567) == "1\u202f234\u202f567"
    assert figures(-2.5, 1) == "\u22122.5"
    assert compact(1_049_344) == "1.05\u202fM"
    assert compact(999_999) == "1\u202fM"
    assert compact(100_000) == "100\u202fk"
    assert duration(594) == "9\u202fmin 54\u202fs"
    assert duration(86400) == "1\u202fd"
    assert power_of_ten(2.6e13) == "2.6\u202f×\u202f10¹³"
    assert power_of_ten(9.99e12) == "1.0\u202f×\u202f10¹³"
    assert "[0.887, 0.935]" in measured(Number(0.912, 0.887, 0.935))
