"""Dot charts with 95% intervals: one row a thing, a whisker for the interval, ticks for bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourstage.reporting.charts import LETTER, _n
from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import Number, figures
from fourstage.reporting.scales import Scale, padded

ROW = 26
HEAD, FOOT = 22, 36


@dataclass(frozen=True)
class Dot:
    """One measured value in a row: its colour (0-5 or `grey`) and, once in a chart, its name."""

    number: Number
    colour: int | str = 0


@dataclass(frozen=True)
class Row:
    """A label, its dots, the bound known for it (drawn as a tick), and a note at the right."""

    label: str
    dots: Sequence[Dot]
    bound: float | None = None
    note: str = ""


@dataclass(frozen=True)
class DotChart:
    """What a dot chart shows; `svg` draws it at a width in units of about one pixel."""

    rows: Sequence[Row]
    title: str
    description: str
    zero: bool = False
    x_range: tuple[float, float] | None = None

    def svg(self, width: int = 360, class_: str | None = None) -> Markup:
        height = HEAD + ROW * len(self.rows) + FOOT
        left = 8 + LETTER * max(len(row.label) for row in self.rows)
        notes = max(len(row.note) for row in self.rows)
        right = width - (14 + LETTER * notes if notes else 10)
        x = Scale(*self._range(), start=left + 8, end=right)
        ticks = x.ticks(max(2, int((x.end - x.start) // 56)))
        base = height - FOOT
        grid = join(
            (
                tag("line", x1=_n(x(tick)), x2=_n(x(tick)), y1=HEAD - 8, y2=base, class_="grid"),
                tag("text", text, x=_n(x(tick)), y=base + 15, class_="tick middle"),
            )
            for tick, text in zip(ticks, x.texts(ticks), strict=True)
        )
        return tag(
            "svg",
            tag("title", self.description),
            grid,
            tag("text", self.title, x=_n(x.end), y=base + 31, class_="title end"),
            (
                self._row(row, x, HEAD + ROW * index + 4, width)
                for index, row in enumerate(self.rows)
            ),
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_label=self.description,
            class_=f"chart {class_ or ''}".strip(),
        )

    def _range(self) -> tuple[float, float]:
        if self.x_range:
            return self.x_range
        values = [row.bound for row in self.rows if row.bound is not None]
        for row in self.rows:
            for dot in row.dots:
                ends = (dot.number.value, dot.number.low, dot.number.high)
                values += [end for end in ends if end is not None]
        return padded(values or [0.0, 1.0], zero=self.zero)

    def _row(self, row: Row, x: Scale, at: float, width: int) -> Markup:
        parts = [tag("text", row.label, x=_n(x.start - 10), y=_n(at + 4), class_="row end")]
        parts.append(tag("line", x1=_n(x.start), x2=_n(x.end), y1=at, y2=at, class_="grid"))
        if row.bound is not None:
            place = _n(x(row.bound))
            parts.append(tag("line", x1=place, x2=place, y1=at - 8, y2=at + 8, class_="bound"))
        for dot in row.dots:
            parts.append(_whisker(dot, x, at))
        if row.note:
            parts.append(tag("text", row.note, x=width, y=_n(at + 4), class_="row end"))
        return join(parts)


def _whisker(dot: Dot, x: Scale, at: float) -> Markup:
    number = dot.number
    centre = tag("circle", cx=_n(x(number.value)), cy=at, r=4, class_=f"dot fill{dot.colour}")
    if number.low is None or number.high is None:
        return centre
    ends = {"x1": _n(x(number.low)), "x2": _n(x(number.high))}
    return join(tag("line", **ends, y1=at, y2=at, class_=f"whisker pen{dot.colour}"), centre)


def interval_note(number: Number, digits: int = 3) -> str:
    """`0.912 [0.887, 0.935]`, for the right margin of a row."""
    text = figures(number.value, digits)
    if number.has_interval:
        text += f" [{figures(number.low, digits)}, {figures(number.high, digits)}]"
    return text
