"""Line charts as SVG: labels stand at the lines, axis titles read across, colours come from CSS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import is_number
from fourstage.reporting.scales import Scale, padded

Point = tuple[float, float]
LETTER = 6.1  # mean width of a letter at the chart's font size of 11 units
POINTS_DRAWN = 400
LARGEST = 1e100
TOP, BOTTOM = 30, 38
FLAG_WIDTH, TOLD = 6, 3  # units; flags at one place that are told of


@dataclass(frozen=True)
class Series:
    """One line: its points in order of x, a short label, a colour (0-5 or `grey`), and its form.

    `form` is `line`, `faint` (a thin pale line, for noisy ones), `dashed`, or `dots` (joined dots).
    """

    label: str
    points: Sequence[Point]
    colour: int | str = 0
    form: str = "line"


@dataclass(frozen=True)
class Reference:
    """A horizontal dashed line at a known value: a floor, a ceiling, the value before."""

    label: str
    value: float


@dataclass(frozen=True)
class Flag:
    """An upright line where something happened, with a point that tells of it; `hollow` is minor.

    Flags that would cover one another are drawn as one.
    """

    x: float
    text: str
    hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """What a line chart shows; `svg` draws it at a width in units of about one pixel."""

    series: Sequence[Series]
    x_title: str
    y_title: str
    description: str
    references: Sequence[Reference] = ()
    x_log: bool = False
    y_log: bool = False
    y_zero: bool = False
    y_range: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    diagonal: bool = False
    flags: Sequence[Flag] = ()

    @property
    def drawable(self) -> bool:
        return any(len(self._visible(series.points)) > 1 for series in self.series)

    def svg(self, width: int = 360, height: int = 240, class_: str | None = None) -> Markup:
        """The drawing; needs at least one series with a point."""
        lines = [(series, self._visible(series.points)) for series in self.series]
        lines = [(series, points) for series, points in lines if points]
        labels = [series.label for series, _ in lines] + [mark.label for mark in self.references]
        right = 10 + LETTER * max([len(label) for label in labels if label] + [1])
        y = self._y_scale(lines, height)
        ticks = y.ticks(max(3, height // 48))
        texts = y.texts(ticks)
        left = 10 + LETTER * max([len(text) for text in texts] + [2])
        x = self._x_scale(lines, left, width - right)
        clip = f"clip{crc32(repr((self.description, self.y_title, width, height)).encode())}"
        return tag(
            "svg",
            tag("title", self.description),
            _y_axis(y, ticks, texts, left, width - right, self.y_title),
            _x_axis(x, height, width, self.x_title),
            tag("clipPath", _box(left, width - right, height), id=clip),
            self._diagonal(x, y),
            (_reference(mark, y, left, width - right) for mark in self.references),
            tag("g", (_line(s, points, x, y) for s, points in lines), clip_path=f"url(#{clip})"),
            _flags(self.flags, x, height - BOTTOM),
            self._labels(lines, y, width - right + 5, height),
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_label=self.description,
            class_=f"chart {class_ or ''}".strip(),
        )

    def _visible(self, points: Sequence[Point]) -> list[Point]:
        kept = clean(points)
        if self.x_log:
            kept = [point for point in kept if point[0] > 0]
        if self.y_log:
            kept = [point for point in kept if point[1] > 0]
        return thinned(kept, POINTS_DRAWN)

    def _x_scale(self, lines: list, start: float, end: float) -> Scale:
        values = [point[0] for _, points in lines for point in points] or [1.0, 10.0]
        values += [flag.x for flag in self.flags if flag.x > 0 or not self.x_log]
        low, high = self.x_range or (min(values), max(values))
        if high <= low:
            low, high = (low / 2, low * 2) if self.x_log else (low - 0.5, high + 0.5)
        return Scale(low, high, start, end, self.x_log)

    def _y_scale(self, lines: list, height: int) -> Scale:
        values = [point[1] for _, points in lines for point in points]
        values += [mark.value for mark in self.references]
        if self.y_range:
            low, high = self.y_range
        elif self.y_log:
            positive = [value for value in values if value > 0] or [1.0]
            low, high = min(positive) / 1.08, max(positive) * 1.08
        else:
            low, high = padded(values or [0.0, 1.0], zero=self.y_zero)
        return Scale(low, high, height - BOTTOM, TOP, self.y_log)

    def _diagonal(self, x: Scale, y: Scale) -> Markup | None:
        if not self.diagonal:
            return None
        low, high = max(x.low, y.low), min(x.high, y.high)
        return tag(
            "line", x1=_n(x(low)), y1=_n(y(low)), x2=_n(x(high)), y2=_n(y(high)), class_="reference"
        )

    def _labels(self, lines: list, y: Scale, at: float, height: int) -> Markup:
        """The names at the right ends of the lines, pushed apart until none covers another."""
        wanted = [(y(points[-1][1]), s.label, f"ink{s.colour}") for s, points in lines if s.label]
        wanted += [(y(mark.value), mark.label, "inkgrey") for mark in self.references if mark.label]
        wanted.sort(key=lambda item: item[0])
        places = spread([min(max(place, TOP), height - BOTTOM) for place, _, _ in wanted], 13)
        return join(
            tag("text", label, x=_n(at), y=_n(place + 4), class_=f"label {ink}")
            for place, (_, label, ink) in zip(places, wanted, strict=True)
        )


def clean(points: Sequence[Point]) -> list[Point]:
    """The points whose two coordinates are finite, and not so large that an axis overflows."""
    return [point for point in points if all(is_number(v) and abs(v) < LARGEST for v in point)]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points: means of runs of neighbours, and the last point as it is."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) // most)
    kept = []
    for start in range(0, len(points) - 1, size):
        part = points[start : min(start + size, len(points) - 1)]
        kept.append((sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)))
    return [*kept, points[-1]]


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """The mean of each point and its `window` neighbours on either side.

    At the start, where a loss falls steeply, the window shrinks and stays centred; at the end,
    where it is flat and noisy, the window keeps what it has on the left.
    """
    means = []
    for index, (x, _) in enumerate(points):
        part = points[max(0, index - min(window, index)) : index + min(window, index) + 1]
        means.append((x, sum(point[1] for point in part) / len(part)))
    return means


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places moved as little as keeps neighbours `gap` apart (blocks share their mean)."""
    blocks: list[list[float]] = []  # each: sum of (place - index * gap), count
    for index, place in enumerate(places):
        blocks.append([place - index * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    moved = [total / count for total, count in blocks for _ in range(int(count))]
    return [start + index * gap for index, start in enumerate(moved)]


def _line(series: Series, points: list[Point], x: Scale, y: Scale) -> Markup:
    path = " ".join(f"{_n(x(px))},{_n(y(py))}" for px, py in points)
    line = tag("polyline", points=path, class_=f"line {series.form} pen{series.colour}")
    if series.form != "dots" and len(points) > 1:
        return line
    dots = (
        tag("circle", cx=_n(x(px)), cy=_n(y(py)), r=2.4, class_=f"dot fill{series.colour}")
        for px, py in points
    )
    return join(line if len(points) > 1 else None, dots)


def _reference(mark: Reference, y: Scale, left: float, right: float) -> Markup:
    at = _n(y(mark.value))
    return tag("line", x1=_n(left), x2=_n(right), y1=at, y2=at, class_="reference")


def _flags(flags: Sequence[Flag], x: Scale, base: float) -> Markup:
    """The flags by their places; those closer than a point is wide share one."""
    places: list[tuple[float, list[Flag]]] = []
    for flag in sorted(flags, key=lambda flag: flag.x):
        at = x(max(flag.x, x.low))
        if not places or at - places[-1][0] > FLAG_WIDTH:
            places.append((at, []))
        places[-1][1].append(flag)
    return join(_flag(at, part, base) for at, part in places)


def _flag(at: float, flags: list[Flag], base: float) -> Markup:
    texts = [flag.text for flag in flags[:TOLD]]
    if len(flags) > TOLD:
        texts.append(f"and {len(flags) - TOLD} more")
    is_hollow = all(flag.hollow for flag in flags)
    return tag(
        "g",
        tag("title", "\n".join(texts)),
        tag("line", x1=_n(at), x2=_n(at), y1=TOP, y2=_n(base)),
        tag("circle", cx=_n(at), cy=TOP - 3, r=2.8),
        class_="flag hollow" if is_hollow else "flag",
    )


def _y_axis(
    y: Scale, ticks: list[float], texts: list[str], left: float, right: float, title: str
) -> Markup:
    parts = [tag("text", title, x=0, y=12, class_="title")]
    for tick, text in zip(ticks, texts, strict=True):
        at = y(tick)
        parts.append(tag("line", x1=_n(left), x2=_n(right), y1=_n(at), y2=_n(at), class_="grid"))
        parts.append(tag("text", text, x=_n(left - 6), y=_n(at + 4), class_="tick end"))
    return join(parts)


def _x_axis(x: Scale, height: int, width: int, title: str) -> Markup:
    base = height - BOTTOM
    ticks = x.ticks(max(3, int((x.end - x.start) // 62)))
    parts = [tag("line", x1=_n(x.start), x2=_n(x.end), y1=base, y2=base, class_="axis")]
    for tick, text in zip(ticks, x.texts(ticks), strict=True):
        at = _n(x(tick))
        parts.append(tag("line", x1=at, x2=at, y1=base, y2=base + 4, class_="axis"))
        parts.append(tag("text", text, x=at, y=base + 16, class_="tick middle"))
    parts.append(tag("text", title, x=_n(x.end), y=base + 32, class_="title end"))
    return join(parts)


def _box(left: float, right: float, height: int) -> Markup:
    return tag(
        "rect",
        x=_n(left - 3),
        y=TOP - 3,
        width=_n(right - left + 6),
        height=height - TOP - BOTTOM + 6,
    )


def _n(value: float) -> str:
    """A coordinate with one decimal, the shortest that a screen can tell."""
    return f"{value:.1f}".removesuffix(".0")
