"""Rows of CSV and TSV: a header, then one row of strings after another."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator

from fourstage.data.reading.jsontext import Broken
from fourstage.data.reading.lists import Found

# A quote that is never closed takes in all that follows: no row is this long.
_LONGEST = 1 << 23


class _Lines:
    """Physical lines, of which the last ones taken can be put back."""

    def __init__(self, lines: Iterable[str]):
        self._lines = iter(lines)
        self._back: deque[str] = deque()
        self.taken: list[str] = []
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._size > _LONGEST:
            raise csv.Error("unexpected end of data")
        line = self._back.popleft() if self._back else next(self._lines)
        self.taken.append(line)
        self._size += len(line)
        return line

    def forget(self) -> None:
        """The row ends here."""
        self.taken, self._size = [], 0

    def restart(self) -> None:
        """Puts back all lines of the row but its first."""
        self._back.extendleft(reversed(self.taken[1:]))
        self.forget()


def table_rows(lines: Iterable[str], delimiter: str) -> Iterator[Found]:
    """A dictionary of strings for each row, numbered from 1 below the header.

    A row whose quotes or number of fields are wrong is a fault; the next line is tried again.

    Args:
        lines: with their line ends.
    """
    source = _Lines(lines)
    csv.field_size_limit(_LONGEST * 2)
    # A delimiter of one column is in no text.
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    number = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            first = source.taken[0].strip()[:40] if source.taken else ""
            source.restart()
            yield Found(Broken(f"broken table row: {_reason(error)} ({first!r})"), number)
            continue
        source.forget()
        if not row or (len(row) == 1 and not row[0].strip() and names and len(names) > 1):
            continue
        if names is None:
            names = _names(row)
            continue
        number += 1
        if len(row) == len(names):
            yield Found(dict(zip(names, row, strict=True)), number)
        else:
            why = f"broken table row: {len(row)} fields where the header has {len(names)}"
            yield Found(Broken(why), number)


def _names(header: list[str]) -> list[str]:
    """Names of the columns; one that is left out or repeated is told by its place."""
    names: list[str] = []
    for place, name in enumerate(header, 1):
        name = name.strip()
        names.append(f"column_{place}" if not name or name in names else name)
    return names


def _reason(error: csv.Error) -> str:
    if "unexpected end" in str(error) or "field larger" in str(error):
        return "a quote is opened and not closed"
    if "expected after" in str(error):
        return "a quote inside a quoted field; write it twice"
    return str(error)
