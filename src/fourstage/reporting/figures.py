"""Charts put together into numbered figures that fit a desk and a phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourstage.reporting.charts import Chart, Series
from fourstage.reporting.dots import DotChart
from fourstage.reporting.html import Markup, tag

WIDE, NARROW = 900, 360


def wide_figure(chart: Chart, caption: Any, height: int = 330) -> Markup | None:
    """One chart over the whole width; a phone gets a drawing of its own size instead."""
    if not chart.drawable:
        return None
    return tag(
        "figure",
        chart.svg(WIDE, height, class_="wide"),
        chart.svg(NARROW, 260, class_="narrow"),
        tag("figcaption", caption),
    )


def panels(
    charts: Sequence[Chart | DotChart | None], caption: Any, small: bool = False
) -> Markup | None:
    """Charts side by side where there is room, under one another where there is not."""
    drawn = [chart for chart in charts if chart is not None and _drawable(chart)]
    if not drawn:
        return None
    drawings = [
        chart.svg(290, 200) if small and isinstance(chart, Chart) else chart.svg()
        for chart in drawn
    ]
    return tag(
        "figure",
        tag("div", drawings, class_="panels small" if small else "panels"),
        tag("figcaption", caption),
    )


def dot_figure(chart: DotChart, caption: Any, key: Markup | None = None) -> Markup | None:
    """A dot chart over the whole width, with the key to its colours above."""
    if not chart.rows:
        return None
    return tag(
        "figure",
        key,
        chart.svg(720, class_="wide"),
        chart.svg(NARROW, class_="narrow"),
        tag("figcaption", caption),
    )


def colour_key(*names: tuple[str, int | str], bound: str = "") -> Markup:
    """What each colour of dots stands for; `bound` names the upright tick."""
    entries = [
        tag(
            "span",
            tag("svg", tag("circle", cx=5, cy=5, r=4, class_=f"fill{colour}"), viewBox="0 0 10 10"),
            name,
        )
        for name, colour in names
    ]
    if bound:
        mark = tag("line", x1=5, x2=5, y1=0, y2=10, class_="bound")
        entries.append(tag("span", tag("svg", mark, viewBox="0 0 10 10"), bound))
    return tag("p", entries, class_="key")


def _drawable(chart: Chart | DotChart) -> bool:
    return chart.drawable if isinstance(chart, Chart) else bool(chart.rows)


def noisy(label: str, points: list[tuple[float, float]], colour: int | str) -> list[Series]:
    """A noisy line as a pale one with its running mean over it; a short one as it is."""
    from fourstage.reporting.charts import smoothed

    if len(points) < 40:
        return [Series(label, points, colour)]
    mean = smoothed(points, len(points) // 40)
    return [Series("", points, colour, "faint"), Series(label, mean, colour)]
