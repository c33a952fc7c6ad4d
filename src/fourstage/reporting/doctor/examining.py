"""Files examined: what each is, every bad row in it, and its usable rows in numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fourstage.data.reading import BadRow, Block, read_blocks
from fourstage.data.shapes import STAGES_OF, Row, fits, misfit, settle
from fourstage.errors import InputError
from fourstage.reporting.doctor.locating import Asked
from fourstage.reporting.doctor.measuring import Measured, Measures, Tools, count_elsewhere
from fourstage.reporting.doctor.surveying import Survey, judged, survey


class Bad(NamedTuple):
    """A row that cannot be used: its line in its file or member, 0 for all of a file."""

    line: int
    why: str


@dataclass
class Findings:
    """What was found in one file.

    Attributes:
        path: as the person wrote it.
        usable: rows that can be used. bad: all others, in the order of the file.
        kinds: what the usable rows are, in the order they were met.
        measured: the usable rows in numbers; None where there are none.
    """

    path: str
    survey: Survey
    usable: int
    bad: list[Bad]
    kinds: list[str]
    measured: Measured | None

    @property
    def rows(self) -> int:
        return 0 if self.survey.error else self.usable + len(self.bad)

    @property
    def stages(self) -> list[str]:
        """The recipe's fields that the file can be given to."""
        fields = [field for kind in self.kinds for field in STAGES_OF[kind]]
        return list(dict.fromkeys(fields))


def examine(files: Sequence[Asked], tools: Tools) -> list[Findings]:
    """The findings of each file; no fault of a file ends the look.

    In memory are the numbers of `Measured` (about 16 bytes a row) and the bad rows, never a file.
    """
    findings = [_examine(asked, tools) for asked in files]
    count_elsewhere([each.measured for each in findings if each.measured])
    return findings


def _examine(asked: Asked, tools: Tools) -> Findings:
    found = survey(asked.file, tools.mapping)
    if found.error:
        return _refused(asked, found)
    reader = _Reader(asked, found, tools)
    try:
        reader.read()
    except InputError as error:  # the file was changed since it was surveyed
        found.error = str(error)
        return _refused(asked, found)
    measured = reader.measures.finish() if reader.usable else None
    return Findings(asked.path, found, reader.usable, reader.bad, list(reader.kinds), measured)


def _refused(asked: Asked, found: Survey) -> Findings:
    return Findings(asked.path, found, 0, [Bad(0, found.error or "")], [], None)


class _Reader:
    """Sorts the rows of a whole file into usable and bad ones."""

    def __init__(self, asked: Asked, found: Survey, tools: Tools):
        self.measures = Measures(tools)
        self.bad: list[Bad] = []
        self.kinds: dict[str, None] = {}
        self.usable = 0
        self._asked, self._mapping = asked, tools.mapping
        # Each member of an archive is judged by its own majority, as preparation does.
        self._majority = {name: settle(c) for name, c in found.shapes.items() if c}

    def read(self) -> None:
        for block in read_blocks(self._asked.file):
            member = block.name.removeprefix(self._asked.file.name).lstrip("/")
            rows, lines = [], []
            for row, line in self._usable(block, member):
                rows.append(row)
                lines.append(line)
                self.kinds[row.kind] = None
            self.usable += len(rows)
            if rows:
                self.measures.add(rows, lines, member)

    def _usable(self, block: Block, member: str) -> Iterator[tuple[Row, int]]:
        majority = self._majority.get(block.name, "")
        for row, line in judged(block, self._mapping):
            if isinstance(row, BadRow):
                why = row.why
            elif not fits(row.shape, majority):
                why = misfit(row.shape, majority)
            else:
                yield row, line
                continue
            # A file may have millions of bad rows, of few reasons.
            place = f"{member}:{line}: " if member else ""
            self.bad.append(Bad(line, sys.intern(place + why)))
