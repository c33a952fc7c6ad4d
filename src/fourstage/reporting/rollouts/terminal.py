"""Episodes in the terminal: the text first, then a row a response token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fourstage.reporting.numbers import signed
from fourstage.reporting.rollouts.episodes import Episode, chosen
from fourstage.reporting.rollouts.shades import MILD, STRONG, Shading, shading_by, shadings
from fourstage.reporting.tables import make_table
from fourstage.reporting.tokens import READ, Speaks, coloured, visible

# level -> the mark behind a token, for eyes and files without colours, and its style. Blue and
# orange are told apart by nearly everyone.
_MARKS = {-2: "▼", -1: "▽", 0: "", 1: "△", 2: "▲"}
_STYLES = {
    -2: "black on orange1",
    -1: "black on navajo_white1",
    1: "black on light_sky_blue1",
    2: "black on deep_sky_blue1",
}
_CUT, _CUT_WORDS = "×", "× clipped"
# Letters of a token in the table; the text shows it whole.
_LONGEST = 14
# Wider than any table here.
_WIDE = 10_000


def print_rollout(
    episodes: Sequence[Episode],
    tokenizer: Speaks,
    console: Console,
    *,
    first: int = 0,
    most: int = 2,
    colour: str | None = None,
) -> None:
    """Every response token of episodes `first` on, with all that is known of it.

    Args:
        colour: what the text is coloured by; the first of `shades.COLOURINGS` that there is.

    Raises:
        InputError: there is no episode `first`, or nothing of that name to colour by.
    """
    shown = chosen(episodes, first, most)
    shading = shading_by(colour, shadings(episodes))
    console.print(_legend(shading, any(each.clipped is not None for each in shown)))
    for episode in shown:
        console.print()
        console.print(Text(episode.summary(len(episodes)), style="bold"))
        console.print(coloured(tokenizer, episode.prompt, [False] * len(episode.prompt)))
        console.print(shaded(episode, tokenizer, shading))
        for table in tables(episode, tokenizer, console):
            console.print(table)


def _legend(shading: Shading | None, clips: bool) -> Text:
    if shading is None:
        return Text("these rollouts hold no numbers to colour by", style="dim")
    text = Text(f"{shading.name}: ", style="dim")
    ranges = {
        2: f"≥ {shading.bound(STRONG)}",
        1: f"≥ {shading.bound(MILD)}",
        -1: f"≤ {shading.below(MILD)}",
        -2: f"≤ {shading.below(STRONG)}",
    }
    for level, words in ranges.items():
        text.append(f" {_MARKS[level]} ", style=_STYLES[level])
        text.append(f" {words}  ", style="dim")
    if clips:
        text.append(_CUT_WORDS, style="dim")
    return text


def shaded(episode: Episode, tokenizer: Speaks, shading: Shading | None) -> Text:
    """The response, each token in the colour of its number, and the mark of that behind it."""
    values = shading.values(episode).tolist() if shading and _has(episode, shading) else []
    text = Text()
    for place, token in enumerate(episode.response):
        is_shaded = shading and values and episode.drawn[place]
        level = shading.level(values[place]) if shading and is_shaded else 0
        style = _STYLES.get(level) or READ[place % 2]
        piece = visible(tokenizer.token_text(int(token)))
        cut = _CUT if episode.clipped is not None and episode.clipped[place] else ""
        text.append(piece, style=style)
        text.append(_MARKS[level] + cut, style="dim")
    return text


def _has(episode: Episode, shading: Shading) -> bool:
    return shading.name in episode.columns


def tables(episode: Episode, tokenizer: Speaks, console: Console) -> list[Table]:
    """A row a response token, in as many tables as the width asks for; the token is in each."""
    cells = {name: _cells(episode, name) for name in episode.columns}
    if episode.clipped is not None:
        cells["clip"] = [_CUT if each else "" for each in episode.clipped.tolist()] + [""]
    found: list[Table] = []
    here: list[str] = []
    for name in cells:
        wider = _table(episode, tokenizer, {each: cells[each] for each in [*here, name]})
        if here and _width(wider, console) > console.width:
            found.append(_table(episode, tokenizer, {each: cells[each] for each in here}))
            here = []
        here.append(name)
    return [*found, _table(episode, tokenizer, {each: cells[each] for each in here})]


def _cells(episode: Episode, name: str) -> list[str]:
    """The numbers of a column, and below them their sum where it means something."""
    column, total = episode.columns[name].tolist(), episode.total(name)
    write = _plain if name == "ratio" else signed
    told = zip(column, episode.drawn.tolist(), strict=True)
    numbers = [write(value) if drawn else "" for value, drawn in told]
    return [*numbers, "" if total is None else write(total)]


def _table(episode: Episode, tokenizer: Speaks, columns: dict[str, list[str]]) -> Table:
    rows: list[list[Any]] = []
    for place, token in enumerate(episode.response):
        numbers = [Text(cells[place]) for cells in columns.values()]
        piece = Text(_short(visible(tokenizer.token_text(int(token)))))
        rows.append([len(episode.prompt) + place, piece, *numbers])
    if any(cells[-1] for cells in columns.values()):
        totals = [Text(cells[-1], style="dim") for cells in columns.values()]
        rows.append(["", Text("sum", style="dim"), *totals])
    table = make_table(["place", "token", *columns], rows)
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    table.columns[1].no_wrap = True
    return table


def _width(table: Table, console: Console) -> int:
    options = console.options.update(max_width=_WIDE)
    return Measurement.get(console, options, table).maximum


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _plain(value: float) -> str:
    return f"{value:.3f}"
