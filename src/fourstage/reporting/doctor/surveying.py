"""The first look at a file: whether it is whole, what it is, and the shape of most of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fourstage.data.documents import cut
from fourstage.data.reading import (
    BadRow,
    Block,
    Damaged,
    RawFile,
    RawRow,
    inspect_file,
    kinds,
    read_blocks,
)
from fourstage.data.reading.archives import archive_kind
from fourstage.data.reading.unpacking import compression
from fourstage.data.shapes import Malformed, Row, recognise, settle
from fourstage.errors import InputError

Judged = Row | BadRow


@dataclass
class Survey:
    """What a file is.

    Attributes:
        format, encoding, compression: see `FileKind`; of a file that cannot be read, as far as its
            first bytes tell.
        junk: members of an archive that are not read, each with the reason.
        shapes: member -> rows of each shape; a file that is no archive is its own only member.
        error: why nothing of the file can be used; None of one that is whole.
    """

    format: str = "unknown"
    encoding: str | None = None
    compression: str | None = None
    junk: list[str] = field(default_factory=list)
    shapes: dict[str, Counter[str]] = field(default_factory=dict)
    error: str | None = None

    @property
    def shape(self) -> str | None:
        """The shape of most rows; None where there is none."""
        total: Counter[str] = sum(self.shapes.values(), Counter())
        return settle(total) if total else None


def survey(file: RawFile, mapping: Mapping[str, str]) -> Survey:
    """Reads a file whole, keeping nothing but counts."""
    found = Survey()
    try:
        if not file.path.is_file():
            raise InputError("neither a file nor a folder: give one of these")
        kind = inspect_file(file)
        found.format, found.encoding = kind.format, kind.encoding
        found.compression = kind.compression
        found.junk = [each.removeprefix(f"{file.name}/") for each in kind.passed]
        for block in read_blocks(file):
            counts = found.shapes.setdefault(block.name, Counter())
            for row, _ in judged(block, mapping):
                if isinstance(row, Row):
                    counts[row.shape] += 1
    except InputError as error:
        found.error = _reason(error, file)
        found.shapes = {}
        if found.format == "unknown":
            found.format = _format(file, error)
    return found


def judged(block: Block, mapping: Mapping[str, str]) -> Iterator[tuple[Judged, int]]:
    """The rows of a block, each understood or bad for itself, with its line.

    Of plain text the rows are documents, cut as `data.document=auto` does.
    """
    if block.text is not None:
        for text in cut(block.text, "auto"):
            if text.strip():
                yield Row(kind="text", shape="text", where=block.where, text=text), block.first
        return
    for raw in block.rows():
        yield (_understood(raw, mapping) if isinstance(raw, RawRow) else raw), raw.line


def _understood(raw: RawRow, mapping: Mapping[str, str]) -> Judged:
    try:
        return recognise(raw.value, raw.where, mapping)
    except Malformed as fault:
        return BadRow(raw.line, str(fault), raw.where)


def _reason(error: InputError, file: RawFile) -> str:
    """Why a file cannot be read, with the member where it is one's fault."""
    why, name = getattr(error, "why", None), getattr(error, "name", "")
    if why is None:
        return str(error)
    member = str(name).removeprefix(f"{file.path}/")
    return why if member == str(name) else f"{member}: {why}"


def _format(file: RawFile, error: InputError) -> str:
    """What the first bytes say of a file that cannot be read."""
    if not file.path.is_file():
        # A pipe is never opened: nobody may write to it.
        return "unknown"
    try:
        with file.path.open("rb") as handle:
            head = handle.read(512)
    except OSError:
        return "unknown"
    packing = compression(head) or archive_kind(head) or kinds.table_kind(head)
    if packing:
        return f"{packing} (damaged)" if isinstance(error, Damaged) else packing
    is_binary = kinds.binary_kind(head) is not None or b"\0" in head
    return "binary" if is_binary or "is binary" in str(error) else "text"
