"""Whole files at once: what they are, their text, their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fourstage.data.reading.blocks import LIMITS, BadRow, RawRow, read_blocks
from fourstage.data.reading.encodings import Utf8
from fourstage.data.reading.faults import raise_faults
from fourstage.data.reading.finding import RawFile
from fourstage.data.reading.parts import Part, opened
from fourstage.data.reading.unpacking import Limits
from fourstage.errors import InputError

# Of a text that has been ASCII for so long, no more is read to tell its encoding.
_LOOKED_AT = 1 << 28
_PIECE = 1 << 20


@dataclass(frozen=True)
class FileKind:
    """What a file is, by its content.

    Attributes:
        format: "text", "markdown", "html", "jsonl", "json", "csv", "tsv", "parquet", "arrow",
            "empty" or "archive".
        encoding: as found ("utf-8", "utf-8-sig", "utf-16", "gb18030", ...); None of tables and of
            archives whose members differ.
        compression: "gz", "bz2", "xz", "zst" (outermost first, joined by `+`), or None.
        members: of an archive: the names of those that are read.
        passed: of an archive: a line for each that is not, with the reason.
        formats: of an archive: what its members are.
        holds_rows: whether there are rows in it, in an archive in any member.
    """

    format: str
    encoding: str | None
    compression: str | None
    members: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    holds_rows: bool = False


def inspect_file(file: RawFile, limits: Limits = LIMITS) -> FileKind:
    """What a file is; an archive is gone through to its end.

    Raises:
        Damaged, Unreadable, InputError: as `read_blocks`, as far as it was looked at.
    """
    passed: list[str] = []
    seen: list[tuple[str, str, str | None, bool]] = []
    packing: tuple[str, ...] = ()
    with opened(file, limits, passed) as parts:
        for part in parts:
            packing = packing or part.packing
            kind = part.format.removesuffix("-stream")
            seen.append((part.name, kind, _encoding(part), part.holds_rows))
    archives = {"zip", "tar"} & set(packing)
    packings = [each for each in packing if each not in ("zip", "tar")]
    if archives:
        before = packing[: min(packing.index(each) for each in archives)]
        packings = list(before)
    compression = "+".join(packings) or None
    if not archives and len(seen) == 1:
        _, kind, encoding, holds_rows = seen[0]
        return FileKind(kind, encoding, compression, holds_rows=holds_rows)
    encodings = {encoding for _, _, encoding, _ in seen if encoding}
    return FileKind(
        "archive",
        next(iter(encodings)) if len(encodings) == 1 else None,
        compression,
        tuple(name for name, *_ in seen),
        tuple(passed),
        tuple(sorted({kind for _, kind, _, _ in seen})),
        any(holds_rows for *_, holds_rows in seen),
    )


def _encoding(part: Part) -> str | None:
    """The encoding of a part, read until it is told; ASCII is UTF-8."""
    source = part.source
    if not isinstance(source, Utf8):
        return None
    left = _LOOKED_AT
    while source.encoding == "ascii" and left > 0 and (piece := source.read(_PIECE)):
        left -= len(piece)
    return "utf-8" if source.encoding == "ascii" else source.encoding


def read_text(file: RawFile) -> str:
    """Text with `\\n` line ends and without a byte order mark; of a page what is said on it.

    Raises:
        Damaged, Unreadable, InputError: as `read_blocks`, or it holds rows.
    """
    parts = []
    for block in read_blocks(file):
        if block.text is None:
            raise InputError(f"{file.path} holds rows ({block.format}), not text")
        parts.append(block.text)
    return "".join(parts)


def read_rows_and_faults(file: RawFile) -> Iterator[RawRow | BadRow]:
    """Rows of a file and the places where there should be one, in order.

    Raises:
        Damaged, Unreadable, InputError: as `read_blocks`, or it holds plain text.
    """
    for block in read_blocks(file):
        if block.text and block.text.strip():
            raise InputError(f"{file.path} is plain text; write JSON lines or a JSON list of rows")
        yield from block.rows()


def read_rows(file: RawFile) -> Iterator[RawRow]:
    """Rows of a file; its faults are told together when all that is right was read.

    Raises:
        Damaged, Unreadable, InputError: as `read_blocks`, it holds plain text, or rows are broken.
    """
    faults = []
    for row in read_rows_and_faults(file):
        if isinstance(row, RawRow):
            yield row
        else:
            faults.append(f"{row.where}: {row.why}")
    raise_faults(faults)
