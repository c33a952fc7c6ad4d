"""Charts put together into numbered figures that fit a desk and a phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourstage.reporting.charts import Chart, Point, Series, clean, smoothed
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


def panels(charts: Sequence[Chart | None], caption: Any, small: bool = False) -> Markup | None:
    """Charts side by side where there is room, under one another where there is not."""
    drawn = [chart for chart in charts if chart is not None and chart.drawable]
    if not drawn:
        return None
    size = (290, 200) if small else (430, 260)
    drawings = [
        (chart.svg(*size, class_="wide"), chart.svg(NARROW, 190 if small else 230, class_="narrow"))
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
        chart.svg(WIDE, class_="wide"),
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


def noisy(label: str, points: list[Point], colour: int | str) -> list[Series]:
    """A noisy line as a pale one with its running mean over it; a calm or short one as it is."""
    points = clean(points)
    if len(points) < 40 or _roughness(points) < 0.005:
        return [Series(label, points, colour)]
    mean = smoothed(points, len(points) // 40)
    return [Series("", points, colour, "faint"), Series(label, mean, colour)]


def _roughness(points: list[Point]) -> float:
    """Mean distance of a point from the middle of its neighbours, as a share of the whole range."""
    heights = [height for _, height in points]
    reach = max(heights) - min(heights)
    bends = [
        abs(b - (a + c) / 2) for a, b, c in zip(heights, heights[1:], heights[2:], strict=False)
    ]
    return sum(bends) / len(bends) / reach if reach else 0.0
