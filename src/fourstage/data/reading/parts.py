"""The parts of a raw file: itself, or the members of the archives in it, each with its format."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import IO

from fourstage.data.reading import kinds
from fourstage.data.reading.archives import archive_kind, members
from fourstage.data.reading.encodings import CONTROLS, Utf8, by_mark, wide
from fourstage.data.reading.faults import Unreadable
from fourstage.data.reading.finding import RawFile, shown
from fourstage.data.reading.unpacking import (
    Budget,
    Limits,
    Source,
    compression,
    file_pieces,
    unpack,
)
from fourstage.errors import InputError

_TEXTS = ("text", "markdown", "html")


@dataclass
class Part:
    """A file, or a member of an archive.

    Attributes:
        name: from the data path down, members as `archive.zip/inner/name.jsonl`.
        where: the same from the root of the disk, for messages.
        format: "text", "markdown", "html", "jsonl", "json", "csv", "tsv", "parquet", "arrow",
            "arrow-stream" or "empty".
        source: the content: UTF-8, or the bytes of a table.
        packing: how it is packed, outermost first, archives included.
    """

    name: str
    where: str
    format: str
    source: Source
    packing: tuple[str, ...]

    @property
    def holds_rows(self) -> bool:
        return self.format not in (*_TEXTS, "empty")

    @property
    def place(self) -> int:
        """Bytes before the content: its byte order mark."""
        return 3 if self.encoding == "utf-8-sig" else 0

    @property
    def encoding(self) -> str | None:
        """As far as it was met: text without any other character is "ascii"."""
        return self.source.encoding if isinstance(self.source, Utf8) else None


@contextlib.contextmanager
def opened(file: RawFile, limits: Limits, passed: list[str]) -> Generator[Iterator[Part]]:
    """The parts of a file, to be read in their order.

    Args:
        passed: gets a line for each member of an archive that is not read: its name and why.

    Raises:
        Damaged, Unreadable: (when iterated) see `read_blocks`.
        InputError: the file cannot be opened.
    """
    try:
        handle = file.path.open("rb")
        size = file.path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {file.path}: {error.strerror or error}") from error
    with handle:
        source = Source(_pieces(handle, file), handle)
        where = shown(str(file.path))
        yield _Walk(Budget(where, size, limits), passed).parts(source, file.name, where, ())


def _pieces(handle: IO[bytes], file: RawFile) -> Iterator[bytes]:
    try:
        yield from file_pieces(handle)
    except OSError as error:
        raise InputError(f"cannot read {file.path}: {error.strerror or error}") from error


class _Walk:
    def __init__(self, budget: Budget, passed: list[str]):
        self._budget, self._passed = budget, passed

    def parts(
        self, source: Source, name: str, where: str, packing: tuple[str, ...]
    ) -> Iterator[Part]:
        head = source.peek(512)
        packed, archive = compression(head), archive_kind(head)
        if packed is None and archive is None:
            yield classify(source, name, where, packing)
            return
        self._refuse_nesting(packing, packed is None, where)
        if packed:
            inner = unpack(source, packed, where, self._budget)
            yield from self.parts(inner, name, where, (*packing, packed))
        else:
            assert archive is not None
            yield from self._archive(source, archive, name, where, (*packing, archive))

    def _refuse_nesting(self, packing: tuple[str, ...], is_archive: bool, where: str) -> None:
        alike = sum((kind in ("zip", "tar")) == is_archive for kind in packing)
        most = self._budget.limits.nesting
        if alike >= most:
            raise Unreadable(where, f"is packed more than {most} times: unpack it yourself")

    def _archive(
        self, source: Source, kind: str, name: str, where: str, packing: tuple[str, ...]
    ) -> Iterator[Part]:
        read = False
        refused: list[str] = []
        for member in members(source, kind, where, self._budget):
            inner = f"{name}/{member.name}"
            if member.source is None:
                refused.append(f"{inner} ({member.refused})")
                continue
            place = f"{where}/{member.name}"
            try:
                yield from self.parts(member.source, inner, place, packing)
                read = True
            except _Binary as error:
                refused.append(f"{inner} ({error.why})")
            # What is not read of a member is still checked.
            while member.source.read(1 << 20):
                pass
        self._passed += refused
        if refused and not read:
            raise Unreadable(where, f"holds nothing to read: {refused[0]}")


class _Binary(Unreadable):
    """No text and no rows: passed over in an archive, as a picture beside them."""


def classify(source: Source, name: str, where: str, packing: tuple[str, ...]) -> Part:
    """A stream that is not packed as a part.

    Raises:
        Unreadable: it is neither text nor rows.
    """
    head = source.peek(kinds.SNIFFED)
    if not head:
        return Part(name, where, "empty", source, packing)
    table = kinds.table_kind(head)
    if table:
        return Part(name, where, table, source, packing)
    suffix = kinds.suffix_of(name)
    encoding = by_mark(head) or _encoding_with_zeros(head, where, suffix)
    is_json = kinds.may_be_json(head, suffix)
    text = Utf8(source, where, encoding, is_json=is_json)
    start = text.peek(kinds.SNIFFED + 1)
    is_whole = len(start) <= kinds.SNIFFED
    kind = kinds.text_kind(start.decode("utf-8", "replace"), suffix, is_whole)
    return Part(name, where, kind, text, packing)


def _encoding_with_zeros(head: bytes, where: str, suffix: str) -> str | None:
    """The encoding of a text that has zero bytes; None for those that have none.

    Raises:
        Unreadable: it is no text.
    """
    kind = kinds.binary_kind(head)
    # A few zero bytes in JSON lines are faults of those lines.
    zeros = head.count(0)
    if zeros and not (kinds.may_be_json(head, suffix) and zeros <= 1 + len(head) // 20):
        if kind is None and (encoding := wide(head[: 1 << 14])):
            return encoding
        raise _Binary(where, f"is binary, not text: {kind or 'leave it out of the data'}")
    controls = len(head) - len(head.translate(None, CONTROLS))
    if controls > len(head) // 50 + 1 or kind is not None:
        raise _Binary(where, f"is binary, not text: {kind or 'leave it out of the data'}")
    return None
