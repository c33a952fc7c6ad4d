"""Reward modelling: accuracy against what noisy preferences allow, and what the scores rest on."""

from __future__ import annotations

from typing import Any

from fourstage.reporting.charts import Chart, Reference, Series
from fourstage.reporting.dots import Dot, DotChart, Row, interval_note
from fourstage.reporting.events import flags
from fourstage.reporting.figures import dot_figure, noisy, panels
from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import figures, is_number, measured, share
from fourstage.reporting.runfiles import RunFiles, StageFiles
from fourstage.reporting.sections import judging
from fourstage.reporting.sections.stability import marked, stability

MEASURES = (
    ("pair_accuracy", "all pairs", "pair_accuracy_ceiling"),
    ("shuffled_pair_accuracy", "prompts shuffled", None),
    ("pair_accuracy_shuffled", "prompts shuffled", None),
    ("pair_accuracy_shuffled_prompts", "prompts shuffled", None),
    ("right_wrong_accuracy", "right over wrong", None),
    ("both_right_accuracy", "both right", None),
    ("longer_better_accuracy", "the better is longer", None),
    ("shorter_better_accuracy", "the better is shorter", None),
    ("ranking_accuracy", "within rankings", None),
    ("label_accuracy", "thumbs", None),
    ("step_accuracy", "steps", None),
    ("first_error_accuracy", "first error", None),
)


def section(run: RunFiles) -> Markup | None:
    stage = run["reward"]
    if not stage.begun:
        return None
    return join(
        _words(stage),
        judging.words(stage),
        _accuracies(stage),
        _kinds(stage),
        judging.binned(stage),
        judging.rests(stage),
        _curves(stage),
        stability(stage),
    )


def _words(stage: StageFiles) -> Markup | None:
    accuracy, ceiling = stage.number("pair_accuracy"), stage.number("pair_accuracy_ceiling")
    if not accuracy:
        return None
    parts: list[Any] = [
        "The reward model orders pairs as their labels do in ",
        measured(accuracy),
        " of cases",
    ]
    if ceiling:
        parts += ["; the labels are noisy, so that ordering every pair rightly would give "]
        parts += [
            measured(ceiling),
            ". That is ",
            share(accuracy.value / ceiling.value),
            " of the ceiling",
        ]
    right = stage.number("right_wrong_accuracy")
    if right:
        parts += [
            ". Between a right and a wrong answer it prefers the right one in ",
            measured(right),
        ]
    length = stage.number("score_length_correlation", "length_correlation")
    if length:
        parts += [". Its scores correlate with length by ", figures(length.value, 2)]
    mean, deviation = stage.model.get("reward_mean"), stage.model.get("reward_std")
    if is_number(mean) and is_number(deviation):
        parts += [
            f". Raw scores are shifted by {figures(mean, 3)} and divided by {figures(deviation, 3)}"
        ]
    return tag("p", parts, ".")


def _accuracies(stage: StageFiles) -> Markup | None:
    rows = []
    for name, label, bound in MEASURES:
        number, ceiling = stage.number(name), stage.number(bound) if bound else None
        if number:
            at = ceiling.value if ceiling else None
            rows.append(Row(label, [Dot(number, 2)], at, interval_note(number)))
    lows = [row.dots[0].number.low or row.dots[0].number.value for row in rows]
    chart = DotChart(
        rows,
        "accuracy (0.5 is chance)",
        "Accuracy of the reward model by kind of pair",
        x_range=(min([0.5, *lows]), 1.0),
    )
    return dot_figure(
        chart,
        "Accuracy of the reward model with 95% intervals. The upright mark is the ceiling that the "
        "noise of the labels sets. With the prompts shuffled among the pairs only manners are left "
        "to judge by.",
    )


def _kinds(stage: StageFiles) -> Markup | None:
    found = stage.by_kind("right_wrong_accuracy") or stage.by_kind("pair_accuracy")
    rows = [
        Row(kind, [Dot(number, 2)], None, interval_note(number))
        for kind, number in sorted(found.items(), key=lambda item: item[1].value)
    ]
    lows = [row.dots[0].number.low or row.dots[0].number.value for row in rows]
    chart = DotChart(
        rows,
        "accuracy",
        "Reward model accuracy by kind of instruction",
        x_range=(min([0.5, *lows]), 1.0),
    )
    return dot_figure(chart, "The same by kind of instruction, the hardest first.")


def _curves(stage: StageFiles) -> Markup | None:
    ceiling = stage.number("pair_accuracy_ceiling")
    marks = [Reference("ceiling", ceiling.value)] if ceiling else []
    held = stage.first_column(
        "validation_pair_accuracy", "validation_accuracy", "validation/accuracy"
    )
    accuracy = noisy("train", stage.first_column("accuracy", "pair_accuracy"), "grey")
    accuracy += [Series("held out", held, 2)] if held else []
    chosen, rejected = stage.column("score_chosen"), stage.column("score_rejected")
    charts = [
        Chart(accuracy, "step", "share of pairs in order", "Pair accuracy over the steps", marks),
        Chart(
            noisy("", stage.first_column("preference_loss", "loss"), "grey"),
            "step",
            "nats per pair",
            "Bradley-Terry loss over the steps",
            [Reference("chance", 0.693147)],
            flags=flags(stage.rows),
        ),
        Chart(
            [*noisy("chosen", chosen, 1), *noisy("rejected", rejected, 3)],
            "step",
            "raw score",
            "Mean score of chosen and rejected responses over the steps",
        ),
        calibration(stage),
    ]
    return panels(charts, marked(stage, _caption(charts[-1] is not None)))


def _caption(calibrated: bool) -> str:
    words = "How it trained: accuracy, loss, and the scores of chosen and rejected responses."
    if calibrated:
        words += " Calibration: of the pairs given a probability, the share that came out so."
    return words


def calibration(stage: StageFiles) -> Chart | None:
    """Predicted against observed preference: `calibration` of `results.json`, `[[p, observed]]`."""
    table = stage.results.get("calibration")
    points = [
        (float(item[0]), float(item[1]))
        for item in (table if isinstance(table, list) else [])
        if isinstance(item, list) and len(item) == 2 and all(map(is_number, item))
    ]
    if len(points) < 2:
        return None
    whole = (0.0, 1.0)
    if min(x for x, _ in points) >= 0.5:
        whole = (0.5, 1.0)
    return Chart(
        [Series("", sorted(points), 2, "dots")],
        "predicted probability",
        "observed share",
        "Calibration of the reward model: predicted probability against observed share",
        diagonal=True,
        x_range=whole,
        y_range=whole,
    )
