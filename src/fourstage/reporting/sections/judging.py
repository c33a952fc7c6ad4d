"""What a reward model's scores rest on: length and format, with accuracy by length and margin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fourstage.reporting.dots import Dot, DotChart, Row, interval_note
from fourstage.reporting.figures import colour_key, dot_figure
from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import Number, figures, is_number, measured
from fourstage.reporting.runfiles import StageFiles

_TABLES = (("accuracy_by_length", "{} tokens longer"), ("accuracy_by_margin", "better by {}"))
_WITHIN, _BEYOND = 1, 2


def words(stage: StageFiles) -> Markup | None:
    """What is said of calibration, of demonstrations and of the members of an ensemble."""
    parts: list[Any] = []
    error = stage.number("calibration_error")
    if error:
        parts += ["Its probabilities are ", figures(error.value, 2), " off on average. "]
    sample, over = stage.number("sample_score"), stage.number("demonstration_over_sample")
    if sample and over:
        parts += ["Where demonstrations score 0, the chat model's samples score "]
        parts += [measured(sample), "; a demonstration is above the sample for its prompt in "]
        parts += [measured(over), " of cases. "]
    agreement = stage.number("member_agreement")
    if agreement:
        parts += ["Two members of the ensemble, which differ in their seeds, order "]
        parts += [measured(agreement), " of the pairs alike. "]
    return tag("p", parts) if parts else None


def rests(stage: StageFiles) -> Markup | None:
    """Correlations of score with length and format within pairs, and beyond what gold explains."""
    rows = []
    for label, within, beyond in _features(stage):
        dots = [Dot(within, _WITHIN)] if within else []
        dots += [Dot(beyond, _BEYOND)] if beyond else []
        if dots:
            rows.append(Row(label, dots, 0.0))
    chart = DotChart(
        rows,
        "correlation of differences within pairs",
        "What scores go with besides quality",
        zero=True,
    )
    return dot_figure(
        chart,
        "How differences of score within pairs go with differences of length and of format. Beyond "
        "gold is what is left where gold is held fixed: of a model that judges quality alone 0, "
        "the upright mark.",
        colour_key(("within pairs", _WITHIN), ("beyond gold", _BEYOND)),
    )


def _features(stage: StageFiles) -> list[tuple[str, Number | None, Number | None]]:
    found = [
        (
            "length",
            stage.number("score_length_within_pairs"),
            stage.number("score_length_beyond_gold"),
        )
    ]
    within = stage.by_kind("score_format_within_pairs")
    beyond = stage.by_kind("score_format_beyond_gold")
    names = list(dict.fromkeys([*within, *beyond]))
    return found + [(name, within.get(name), beyond.get(name)) for name in names]


def binned(stage: StageFiles) -> Markup | None:
    """Accuracy by how much longer, and by how much better, the better answer is."""
    return join(*(_table(stage, name, label) for name, label in _TABLES))


def _table(stage: StageFiles, name: str, label: str) -> Markup | None:
    told = stage.results.get(name)
    rows = [_row(row, label) for row in (told if isinstance(told, list) else [])]
    known = [row for row in rows if row is not None]
    if len(known) < 2:
        return None
    lows = [row.dots[0].number.low or row.dots[0].number.value for row in known]
    what = "length" if name.endswith("length") else "margin"
    chart = DotChart(
        known,
        "share of pairs in order",
        f"Reward model accuracy by {what}",
        x_range=(min([0.5, *lows]), 1.0),
    )
    return dot_figure(chart, f"Share of pairs in order, by {what} of the better over the worse.")


def _row(told: Any, label: str) -> Row | None:
    if not isinstance(told, Mapping) or not is_number(told.get("accuracy")):
        return None
    low, high = told.get("interval") or (None, None)
    number = Number(told["accuracy"], low, high)
    ends = [figures(told.get(end)) for end in ("from", "to")]
    between = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    return Row(label.format(between), [Dot(number, 2)], None, interval_note(number))
