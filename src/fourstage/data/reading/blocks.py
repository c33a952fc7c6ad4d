"""Raw files in blocks: cut cheaply by one process, turned into rows by many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fourstage.data.reading import columns, kinds
from fourstage.data.reading.encodings import decoded
from fourstage.data.reading.faults import Unreadable
from fourstage.data.reading.finding import RawFile
from fourstage.data.reading.html import page_text
from fourstage.data.reading.jsontext import BLANK, Broken, parse_row
from fourstage.data.reading.lists import Found, Values
from fourstage.data.reading.parts import Part, opened
from fourstage.data.reading.plain import cut_text, line_ends
from fourstage.data.reading.tables import table_rows
from fourstage.data.reading.unpacking import Limits, Source

LIMITS = Limits()
_PIECE = 1 << 20


@dataclass(frozen=True)
class RawRow:
    """A value of a file, and where it begins.

    Attributes:
        where: `path:line`.
        line: 1-based: the line of the unpacked text, in lists and tables the number of the row.
    """

    value: Any
    where: str
    line: int


@dataclass(frozen=True)
class BadRow:
    """A place of a file where a row should be, and why there is none."""

    line: int
    why: str
    where: str


@dataclass(frozen=True)
class Block:
    """Some neighbouring text or rows of a file; small, whole and ready for another process.

    Attributes:
        name: `RawFile.name`, members of archives as `archive.zip/inner/name.jsonl`.
        where: the same from the disk's root down, for messages.
        format: what its file is; see `FileKind`.
        first: line or number of its first row.
        text: of plain text; None where there are rows.
        lines: undecoded JSON lines. values: rows and their numbers. table: rows of a table, packed.
        last: whether the file (or member) ends here.
    """

    name: str
    where: str
    format: str
    first: int
    text: str | None = None
    lines: bytes | None = None
    values: tuple[Found, ...] | None = None
    table: bytes | None = None
    last: bool = False

    @property
    def holds_rows(self) -> bool:
        return self.text is None

    def rows(self) -> Iterator[RawRow | BadRow]:
        """Its rows in order; none of plain text."""
        if self.lines is not None:
            yield from self._lines(self.lines)
        for found in self.values or ():
            yield self._row(found.value, found.number)
        if self.table is not None:
            for number, row in enumerate(columns.unpack_rows(self.table), self.first):
                yield self._row(row, number)

    def _row(self, value: Any, line: int) -> RawRow | BadRow:
        where = f"{self.where}:{line}"
        if isinstance(value, Broken):
            return BadRow(line, str(value), where)
        return RawRow(value, where, line)

    def _lines(self, lines: bytes) -> Iterator[RawRow | BadRow]:
        # U+2028 and its like end no line of JSON: only \n does.
        for number, raw in enumerate(lines.split(b"\n"), self.first):
            value: Any
            try:
                line = raw.decode("utf-8").strip(BLANK)
                if not line:
                    continue
                value = parse_row(line)
            except UnicodeDecodeError as error:
                value = Broken(f"bytes that are not UTF-8 (column {error.start + 1})")
            except Broken as fault:
                value = fault
            yield self._row(value, number)


def read_blocks(
    file: RawFile,
    block_bytes: int = 1 << 20,
    *,
    passed: list[str] | None = None,
    limits: Limits = LIMITS,
) -> Iterator[Block]:
    """A file from its beginning to its end, in blocks whose borders its content alone decides.

    Nothing is held but the block at hand. The members of an archive follow each other.

    Args:
        block_bytes: about how large a block is: bytes of rows, characters of text.
        passed: gets a line for each member of an archive that is not read: its name and why.

    Raises:
        Damaged: (at the latest when the damage is reached) the file or a member is cut or broken.
        Unreadable: it is binary, its encoding cannot be told or is not kept to, a member is
            encrypted, it unpacks to more than `limits` allow, or a row is too long.
        InputError: it cannot be opened, or needs a library that is not installed.
    """
    with opened(file, limits, [] if passed is None else passed) as parts:
        for part in parts:
            yield from _blocks(part, block_bytes, limits)


def _blocks(part: Part, size: int, limits: Limits) -> Iterator[Block]:
    name, where, kind, source = part.name, part.where, part.format, part.source
    if kind == "empty":
        _pass_over(source)
        yield Block(name, where, kind, 1, text="", last=True)
    elif kind in ("text", "markdown", "html"):
        texts = line_ends(decoded(source, "utf-8", where, part.place))
        for piece in cut_text(page_text(texts) if kind == "html" else texts, size):
            yield Block(name, where, kind, piece.first, text=piece.text, last=piece.is_last)
    elif kind == "jsonl":
        yield from _line_blocks(part, size, limits)
    elif kind in ("json", "csv", "tsv"):
        yield from _value_blocks(part, _found(part, limits), size)
    else:
        yield from _table_blocks(part, size)


def _pass_over(source: Source) -> None:
    while source.read(_PIECE):
        pass


def _line_blocks(part: Part, size: int, limits: Limits) -> Iterator[Block]:
    """Whole lines; the last block of `size` bytes that has a line's end, or as many as it takes."""
    first = 1
    held: list[bytes] = []
    while True:
        piece = part.source.read(size)
        is_last = len(piece) < size
        end = len(piece) if is_last else piece.rfind(b"\n") + 1
        if end == 0 and not is_last:
            held.append(piece)
            if len(held) * size > limits.row:
                raise Unreadable(part.where, f"has a line of more than {limits.row} bytes")
            continue
        lines, held = b"".join([*held, piece[:end]]), [piece[end:]]
        yield Block(part.name, part.where, part.format, first, lines=lines, last=is_last)
        if is_last:
            return
        first += lines.count(b"\n")


def _found(part: Part, limits: Limits) -> Iterator[Found]:
    texts = decoded(part.source, "utf-8", part.where, part.place)
    if part.format == "json":
        return iter(Values(lambda: next(texts, ""), part.where, limits.row))
    head = part.source.peek(kinds.SNIFFED)
    mark = kinds.delimiter(head.decode("utf-8", "replace"), len(head) < kinds.SNIFFED)
    return table_rows(_lines(line_ends(texts)), mark or ("\t" if part.format == "tsv" else ","))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines with their ends."""
    held = ""
    for text in texts:
        *lines, held = (held + text).split("\n")
        for line in lines:
            yield line + "\n"
    if held:
        yield held


def _value_blocks(part: Part, found: Iterator[Found], size: int) -> Iterator[Block]:
    """So many values that their text is about `size`."""
    values: list[Found] = []
    held = 0
    for each in found:
        if held >= size:
            yield _of_values(part, values, last=False)
            values, held = [], 0
        values.append(each)
        held += _weight(each.value)
    yield _of_values(part, values, last=True)


def _of_values(part: Part, values: list[Found], *, last: bool) -> Block:
    first = values[0].number if values else 1
    return Block(part.name, part.where, part.format, first, values=tuple(values), last=last)


def _weight(value: Any) -> int:
    """About the bytes of a value, from its strings."""
    if isinstance(value, str):
        return len(value) + 8
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 16 + sum(map(_weight, inner))


def _table_blocks(part: Part, size: int) -> Iterator[Block]:
    first = 1
    held: tuple[bytes, int] | None = None
    for batch in columns.batches(part.source, part.format, part.where, size):
        if held:
            yield Block(part.name, part.where, part.format, held[1], table=held[0])
        held = columns.pack(batch), first
        first += batch.num_rows
    packed, first = held or (None, 1)
    empty = () if packed is None else None
    yield Block(part.name, part.where, part.format, first, table=packed, values=empty, last=True)
