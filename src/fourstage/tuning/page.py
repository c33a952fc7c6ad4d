"""The plot of a range test: loss over rate, a line a batch, as a page of its own or one drawing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from fourstage.planning.rules import shown
from fourstage.reporting.charts import Chart, Series
from fourstage.reporting.figures import wide_figure
from fourstage.reporting.html import Markup, join, table, tag
from fourstage.reporting.page import POLICY
from fourstage.tuning.fit import HIGHEST
from fourstage.tuning.grid import Setting
from fourstage.tuning.proposal import Sweep, sweeps

if TYPE_CHECKING:
    from fourstage.tuning.rangetest import Tuned

_COLOURS = 6
# Points of a parabola that is drawn.
_CURVE = 50


def chart(found: Sequence[Sweep], centre: Setting, labels: Sequence[str] | None = None) -> Chart:
    """Losses of the trials as dots, their parabolas dashed, the centre's rate upright in grey."""
    series: list[Series] = []
    heights: list[float] = []
    for number, sweep in enumerate(found):
        label = labels[number] if labels else f"batch {shown(sweep.batch)}"
        points = [(o.setting.rate, o.loss) for o in sweep.outcomes if o.loss is not None]
        heights += [loss for _, loss in points]
        colour = number % _COLOURS
        series.append(Series(label, points, colour, "dots"))
        if sweep.fit.curvature:
            series.append(Series("", _parabola(sweep), colour, "dashed"))
    if heights:
        upright = [(centre.rate, min(heights)), (centre.rate, max(heights))]
        series.append(Series("", upright, "grey", "dashed"))
    return Chart(
        series,
        "peak learning rate",
        "held-out loss, nats",
        "Held-out loss of short trials over the peak learning rate",
        x_log=True,
    )


def _parabola(sweep: Sweep) -> list[tuple[float, float]]:
    """The parabola where it is said to hold."""
    rates = [outcome.setting.rate for outcome in sweep.outcomes]
    highest = HIGHEST * sweep.fit.loss
    low, high = min(rates), max(rates)
    at = [low * (high / low) ** (place / (_CURVE - 1)) for place in range(_CURVE)]
    return [(r, loss) for r in at if (loss := sweep.fit.loss_at(r)) <= highest]


def drawing(chart: Chart, width: int = 640, height: int = 380) -> str:
    """A chart as an SVG file of its own, with the style of the reports in it."""
    style = tag("style", Markup(_style()))
    svg = chart.svg(width, height)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    head, _, rest = svg.partition(">")
    return f"{opening}{head.removeprefix('<svg ')}>{style}{rest}\n"


def page(tuned: Tuned) -> str:
    """A self-contained page: the plot, the trials, the proposal."""
    found, proposal = sweeps(tuned.outcomes), tuned.proposal
    title = f"Range test of {tuned.stage}"
    body: list[Markup | None] = [tag("h1", title)]
    if proposal is None:
        body.append(tag("p", "Every trial diverged: lower the rate and test again."))
    else:
        figure = wide_figure(
            chart(found, proposal.centre),
            "Held-out loss at the end of each trial, and the parabola through the trials near the "
            "lowest of each batch. The upright line is the rate they were tried around.",
        )
        body += [tag("p", tag("code", " ".join(tuned.overrides))), figure]
    body.append(_trials(tuned))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Markup(_style())),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', join(*body)), lang='en')}\n"


def _trials(tuned: Tuned) -> Markup:
    ordered = sorted(tuned.outcomes, key=lambda o: (o.setting.batch, o.setting.rate))
    rows = [
        [
            shown(o.setting.batch),
            f"{o.setting.rate:.3g}",
            shown(o.steps),
            "diverged" if o.loss is None else f"{o.loss:.4f}",
            f"{o.tokens_per_second:,.0f}",
        ]
        for o in ordered
    ]
    header = ["Batch", "Rate", "Steps", "Loss", "Tokens/s"]
    return table(header, rows, caption="The trials.", class_="numbers")


def _style() -> str:
    return resources.files("fourstage.reporting").joinpath("style.css").read_text(encoding="utf-8")
