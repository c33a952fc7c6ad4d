"""The one table printer of the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fourstage.reporting.numbers import Number, figures, is_number


def make_table(header: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """A table in the manner of print: rules above and below, numbers to the right, no grid.

    Cells may be text, numbers, `Number`s (written with their 95% interval), None (a dash) or rich
    texts. A column whose cells are all numbers or empty is set to the right.
    """
    rows = [list(row) for row in rows]
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column, name in enumerate(header):
        cells = [row[column] for row in rows]
        numeric = bool(cells) and all(_numeric(cell) for cell in cells)
        # Words may wrap, figures never.
        table.add_column(
            name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str = "",
    console: Console | None = None,
) -> None:
    """Prints `make_table` to `console`, or to standard output."""
    (console or Console(highlight=False)).print(make_table(header, rows, title))


def _numeric(cell: Any) -> bool:
    return cell is None or cell == "" or is_number(cell) or isinstance(cell, Number)


def _cell(cell: Any) -> Text:
    if isinstance(cell, Text):
        return cell
    if cell is None:
        return Text("–", style="dim")
    if isinstance(cell, Number):
        text = Text(figures(cell.value, 3))
        if cell.has_interval:
            text.append(f" [{figures(cell.low, 3)}, {figures(cell.high, 3)}]", style="dim")
        return text
    return Text(figures(cell) if is_number(cell) else str(cell))
