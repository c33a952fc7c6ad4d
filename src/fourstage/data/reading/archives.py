"""Members of zip and tar archives, read in order without ever being written below their names."""

from __future__ import annotations

import contextlib
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fourstage.data.reading.faults import Damaged, Unreadable
from fourstage.data.reading.finding import is_junk, shown
from fourstage.data.reading.unpacking import Budget, Source, file_pieces, seekable
from fourstage.errors import InputError

_BLOCK = 512
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


@dataclass
class Member:
    """A file in an archive.

    Attributes:
        name: with `/`, on one line.
        source: its bytes, to be read before the next member is asked for.
        refused: why it is not read, else empty; then there is no source.
    """

    name: str
    source: Source | None = None
    refused: str = ""


def archive_kind(head: bytes) -> str | None:
    """ "zip" or "tar", by the first 512 bytes."""
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return "zip"
    if head[257:262] == b"ustar":
        return "tar"
    # Tar before ustar has no mark, but a sum of its header.
    field = head[148:156].strip(b" \0")
    if len(head) < _BLOCK or not head[0] or not re.fullmatch(rb"[0-7]{4,7}", field):
        return None
    return "tar" if int(field, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:]) else None


def members(source: Source, kind: str, name: str, budget: Budget) -> Iterator[Member]:
    """The members of an archive, in its order.

    Raises:
        Damaged: the archive is cut or broken, at the latest when its last member was read.
        Unreadable: a member is encrypted or packed in a way that is not known, or unpacks to more
            than the budget.
    """
    return _zip_members(source, name, budget) if kind == "zip" else _tar_members(source, name)


def _refusal(name: str) -> str:
    """Why a name is not read."""
    parts = re.split(r"[/\\]", name)
    if parts[0] == "" or re.match(r"[A-Za-z]:", name):
        return "an absolute name"
    if ".." in parts:
        return "a name that leads out of the archive"
    return "junk" if is_junk("/".join(part for part in parts if part not in ("", "."))) else ""


def _zip_members(source: Source, name: str, budget: Budget) -> Iterator[Member]:
    with seekable(source) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (*_BROKEN, NotImplementedError) as error:
            raise Damaged(name, f"is a cut or broken zip file ({error}); get it again") from error
        for info in archive.infolist():
            if not info.filename.endswith("/"):
                yield _zip_member(archive, info, name, budget)


def _zip_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, budget: Budget
) -> Member:
    own = shown(_zip_name(info))
    refused = _refusal(own)
    if stat.S_ISLNK(info.external_attr >> 16):
        refused = refused or "a link"
    if refused:
        return Member(own, refused=refused)
    if info.flag_bits & 1:
        raise Unreadable(f"{name}/{own}", "is encrypted: unpack it with its password first")
    return Member(own, Source(_zip_pieces(archive, info, f"{name}/{own}", budget)))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name; where its encoding is not told, `zipfile` takes it for that of the first PCs."""
    if info.flag_bits & 0x800:
        return info.filename
    for encoding in ("utf-8", "gb18030"):
        with contextlib.suppress(UnicodeError):
            return info.filename.encode("cp437").decode(encoding)
    return info.filename


def _zip_pieces(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, budget: Budget
) -> Iterator[bytes]:
    try:
        with archive.open(info) as file:
            for piece in file_pieces(file):
                budget.spend(len(piece))
                yield piece
    except InputError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        raise Unreadable(name, f"is packed in a way that is not known ({error})") from error
    except _BROKEN as error:
        raise Damaged(name, f"is cut or broken ({error}); get the archive again") from error


class _Forward:
    """A stream for `tarfile`, which seeks forward only; keeps the last block that was read."""

    def __init__(self, source: Source):
        self._source, self._place, self.last = source, 0, b""

    def tell(self) -> int:
        return self._place

    def read(self, count: int) -> bytes:
        self.last = self._source.read(count)
        self._place += len(self.last)
        return self.last

    def seek(self, place: int) -> None:
        if place < self._place:
            raise tarfile.ReadError("its headers point back")
        while place > self._place and self.read(min(place - self._place, 1 << 20)):
            pass


def _tar_members(source: Source, name: str) -> Iterator[Member]:
    stream = _Forward(source)
    try:
        with tarfile.open(fileobj=_as_file(stream), mode="r:") as archive:
            while (info := archive.next()) is not None:
                # Kept for look-ups that nobody makes here.
                archive.members = []  # ty: ignore
                if not info.isdir():
                    yield _tar_member(archive, info, name)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise Damaged(name, f"is a cut or broken tar file ({error}); get it again") from error
    _check_end(stream, source, name)


def _as_file(stream: _Forward) -> Any:
    """`tarfile` asks for no more of a file than what `_Forward` has."""
    return stream


def _check_end(stream: _Forward, source: Source, name: str) -> None:
    """`tarfile` takes a cut or broken header for the end: a block of zeros is the true one.

    Raises:
        Damaged: the archive does not end as it should.
    """
    if stream.last != bytes(_BLOCK):
        raise Damaged(name, "is a cut or broken tar file (it has no end mark); get it again")
    while piece := source.read(1 << 20):
        if piece.strip(b"\0"):
            raise Damaged(name, "is a tar file with bytes after its end mark; pack it again")


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> Member:
    own = shown(info.name)
    refused = _refusal(own)
    if info.issym() or info.islnk():
        refused = refused or "a link"
    elif not info.isreg():
        refused = refused or "no regular file"
    elif info.issparse():
        refused = refused or "a sparse file"
    if refused:
        return Member(own, refused=refused)
    return Member(own, Source(_tar_pieces(archive, info, f"{name}/{own}")))


def _tar_pieces(archive: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> Iterator[bytes]:
    file = archive.extractfile(info)
    if file is None:
        return
    try:
        with file:
            yield from file_pieces(file)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Damaged(name, f"is cut ({error}); get the archive again") from error
