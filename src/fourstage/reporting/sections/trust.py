"""Whether the reward model still knew what it was asked about, as the policy moved away."""

from __future__ import annotations

from typing import Any

from fourstage.reporting.charts import Chart
from fourstage.reporting.dots import Dot, DotChart, Row, interval_note
from fourstage.reporting.figures import colour_key, dot_figure, noisy, panels
from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import figures, measured
from fourstage.reporting.runfiles import StageFiles

_BEFORE, _AFTER = 1, 3
_LEADS = (
    ("proxy_right_wrong", "right above wrong"),
    ("proxy_gold_correlation", "goes with gold"),
    ("proxy_length_correlation", "goes with length"),
)


def trust(stage: StageFiles) -> Markup | None:
    """The reward model on the policy's own responses; nothing where none was asked."""
    return join(_words(stage), _leads(stage), _watched(stage))


def _words(stage: StageFiles) -> Markup | None:
    parts: list[Any] = []
    high = stage.number("proxy_high_share")
    if high:
        parts += ["Of the policy's responses ", measured(high), " score as high as only one in "]
        parts += ["twenty of the SFT model's did. "]
    over, shown = stage.number("demonstration_over_policy"), stage.number("demonstration_score")
    drawn = stage.number("policy_score")
    if over and shown and drawn:
        parts += ["Demonstrations score ", measured(shown), ", the policy's responses to the same "]
        parts += ["prompts ", measured(drawn), "; a demonstration is above the response in "]
        parts += [measured(over), " of cases. "]
    apart = stage.number("proxy_disagreement")
    if apart:
        parts += ["The members of the ensemble disagree ", figures(apart.value, 2)]
        parts += [" times as much as before. "]
    return tag("p", parts) if parts else None


def _leads(stage: StageFiles) -> Markup | None:
    rows = []
    for name, label in _LEADS:
        before, after = stage.number(f"{name}_sft"), stage.number(name)
        if after is not None:
            dots = [Dot(before, _BEFORE)] if before else []
            rows.append(Row(label, [*dots, Dot(after, _AFTER)], None, interval_note(after)))
    chart = DotChart(
        rows,
        "share, or correlation with the score",
        "What the reward model's scores go with, before and after RL",
        zero=True,
    )
    return dot_figure(
        chart,
        "How well the reward model leads, on responses of the SFT model and of the policy: how "
        "often a right one scores above a wrong one (0.5 is blind), and how scores go with gold "
        "and with length. What falls is what the policy has learned to get round.",
        colour_key(("SFT", _BEFORE), ("RL", _AFTER)),
    )


def _watched(stage: StageFiles) -> Markup | None:
    charts = [
        Chart(
            noisy("", stage.column(name), 3),
            "step",
            words,
            f"{words} over the steps of RL",
            y_zero=zero,
        )
        for name, words, zero in (
            ("proxy_unfamiliar", "share of unfamiliar scores", True),
            ("proxy_disagreement", "disagreement of members", True),
            ("watch_reward", "a second reward model", False),
        )
    ]
    return panels(
        charts,
        "Scores where the reward model's training comparisons hardly have any, how much more its "
        "members disagree than before, and what a reward model says that pays nothing.",
        small=True,
    )
