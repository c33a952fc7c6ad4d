"""Bytes as streams: read forward once, unpacked on the way, and never further than a limit."""

from __future__ import annotations

import bz2
import contextlib
import io
import lzma
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import IO, Any

from fourstage.data.reading.faults import Damaged, Unreadable
from fourstage.extras import require

_CHUNK = 1 << 16
_PIECE = 1 << 20
# A byte of zstandard can become 128 kB: little is given to it at a time, so that little comes out.
_ZST_CHUNK = 1 << 10
# Held in memory up to this size, beyond it in a temporary file that has no name.
_IN_MEMORY = 1 << 24
_MOST_MEMORY = 1 << 30
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
}


@dataclass(frozen=True)
class Limits:
    """What a file may ask of the machine.

    Attributes:
        ratio, unpacked: a file that unpacks to more than `ratio` times its size and to more than
            `unpacked` bytes is refused as a bomb.
        nesting: most archives or compressions within each other.
        row: most bytes of one row, or of one line of JSON.
    """

    ratio: int = 1000
    unpacked: int = 1 << 30
    nesting: int = 3
    row: int = 1 << 28


class Budget:
    """Counts what the parts of one file unpack to.

    Raises:
        Unreadable: from `spend`, beyond the limits.
    """

    def __init__(self, name: str, size: int, limits: Limits):
        self.name, self.limits = name, limits
        self.most = max(limits.unpacked, limits.ratio * size)
        self.spent = 0

    def spend(self, count: int) -> None:
        self.spent += count
        if self.spent > self.most:
            raise Unreadable(
                self.name,
                f"unpacks to more than {self.limits.ratio} times its size: a bomb, or unpack it "
                "yourself and give what is in it",
            )


class Source(io.RawIOBase):
    """Bytes pulled piece by piece, with a look ahead.

    Args:
        pieces: the bytes in order; empty pieces are passed over.
        file: the file on disk that these are the bytes of, where one can seek.
    """

    def __init__(self, pieces: Iterator[bytes], file: IO[bytes] | None = None):
        super().__init__()
        self.file = file
        self._pieces = pieces
        self._held = b""
        self._at = 0

    def readable(self) -> bool:
        return True

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, fewer only where the end is nearer; they stay to be read."""
        size = len(self._held) - self._at
        if size < count:
            parts = [self._held[self._at :]]
            for piece in self._pieces:
                parts.append(piece)
                size += len(piece)
                if size >= count:
                    break
            self._held, self._at = b"".join(parts), 0
        return self._held[self._at : self._at + count]

    def read(self, count: int = -1, /) -> bytes:
        """Exactly `count` bytes (all with -1), fewer only at the end."""
        if count < 0:
            taken = b"".join([self._held[self._at :], *self._pieces])
            self._held, self._at = b"", 0
            return taken
        taken = self.peek(count)
        self._at += len(taken)
        return taken

    def unread(self, data: bytes) -> None:
        """Puts bytes back in front."""
        if data:
            self._held, self._at = data + self._held[self._at :], 0


@contextlib.contextmanager
def seekable(source: Source) -> Generator[IO[bytes]]:
    """The whole of a stream where one can seek in it; a copy of it is gone afterwards."""
    if source.file is not None:
        source.file.seek(0)
        yield source.file
        return
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spool:
        while piece := source.read(_PIECE):
            spool.write(piece)
        spool.seek(0)
        yield spool


def file_pieces(handle: Any) -> Iterator[bytes]:
    while piece := handle.read(_PIECE):
        yield piece


def compression(head: bytes) -> str | None:
    """What the first bytes (at least 8 where there are) say that a file is packed with."""
    if _is_skippable(head):
        return "zst"
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    # BZh is a word that a text may begin with; a block or the end of the stream follows.
    if found == "bz2" and head[4:8] not in (b"1AY&", b"\x17\x72\x45\x38") and len(head) >= 8:
        return None
    return found


def _is_skippable(head: bytes) -> bool:
    return len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5


def unpack(source: Source, kind: str, name: str, budget: Budget) -> Source:
    """The content of a packed stream: of all its members, streams or frames.

    Raises:
        Damaged: (when read) it is cut, fails its check, or has foreign bytes after its end.
        Unreadable: (when read) it unpacks to more than the budget.
    """
    return Source(_counted(_members(source, kind, name), budget))


def _counted(pieces: Iterator[bytes], budget: Budget) -> Iterator[bytes]:
    for piece in pieces:
        budget.spend(len(piece))
        yield piece


def _members(source: Source, kind: str, name: str) -> Iterator[bytes]:
    new, feed, chunk = _machines(kind, name)
    first = True
    while head := source.peek(8):
        if kind == "zst" and _is_skippable(head):
            source.read(8)
            _skip(source, int.from_bytes(head[4:8], "little"), kind, name)
            continue
        if not first and _only_padding(source, head):
            continue
        if compression(head) != kind:
            raise Damaged(name, f"has bytes after its end that are not {kind}: get it again")
        first = False
        machine = new()
        while not machine.eof:
            data = source.read(chunk)
            if not data:
                raise Damaged(name, f"is cut: its {kind} stream has no end; get it again")
            try:
                yield from feed(machine, data)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise Damaged(name, f"is a broken {kind} file ({error}); get it again") from error
        source.unread(machine.unused_data)


def _only_padding(source: Source, head: bytes) -> bool:
    """Takes zero bytes, with which tapes and xz fill up; whether there were any."""
    zeros = len(head) - len(head.lstrip(b"\0"))
    source.read(zeros)
    return zeros > 0


def _skip(source: Source, count: int, kind: str, name: str) -> None:
    while count:
        taken = len(source.read(min(count, _PIECE)))
        if not taken:
            raise Damaged(name, f"is cut: its {kind} stream has no end; get it again")
        count -= taken


def _machines(
    kind: str, name: str
) -> tuple[Callable[[], Any], Callable[[Any, bytes], Iterator[bytes]], int]:
    """How to make a decompressor, how to feed it, and how many bytes at a time."""
    if kind == "gz":
        return lambda: zlib.decompressobj(wbits=31), _feed_zlib, _CHUNK
    if kind == "bz2":
        return bz2.BZ2Decompressor, _feed, _CHUNK
    if kind == "xz":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_MEMORY), _feed, _CHUNK
    zstandard = require("zstandard", "data", f"to read {name}")
    unpacker = zstandard.ZstdDecompressor(max_window_size=_MOST_MEMORY)

    def feed(machine: Any, data: bytes) -> Iterator[bytes]:
        try:
            yield machine.decompress(data)
        except zstandard.ZstdError as error:
            raise ValueError(error) from error

    return unpacker.decompressobj, feed, _ZST_CHUNK


def _feed_zlib(machine: Any, data: bytes) -> Iterator[bytes]:
    while True:
        piece = machine.decompress(data, _PIECE)
        yield piece
        data = machine.unconsumed_tail
        # A full piece may leave more inside, even when all input was taken.
        if machine.eof or (not data and len(piece) < _PIECE):
            return


def _feed(machine: Any, data: bytes) -> Iterator[bytes]:
    yield machine.decompress(data, _PIECE)
    while not machine.eof and not machine.needs_input:
        yield machine.decompress(b"", _PIECE)
