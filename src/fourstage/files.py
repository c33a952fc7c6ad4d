"""Files that are either whole or absent: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from fourstage.errors import MachineError

# What the system refuses with: the reason, and what to do about it.
_FAULTS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("it would be larger than files may be here", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the disk is read-only", "make it writable, or write elsewhere,"),
    errno.EACCES: ("permission is denied", "give it, or write elsewhere,"),
    errno.EPERM: ("the system does not permit it", "allow it, or write elsewhere,"),
    errno.EIO: ("the disk reported an input/output error", "look after the disk"),
    errno.ESTALE: ("the file server has lost it", "mount the disk anew"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}


@contextlib.contextmanager
def explained(path: Path) -> Generator[None]:
    """Turns the operating system's refusal to write `path` into one clear line.

    Raises:
        MachineError: the disk is full, read-only or broken, or the path may not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FAULTS:
            raise
        reason, remedy = _FAULTS[error.errno]
        raise MachineError(f"cannot write {path}: {reason}; {remedy} and run again") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`; a reader sees the old file or the whole new one."""
    write_pieces(path, [content])


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """As `write_bytes`, of what is too large to be held at once."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes JSON lines, whole or not at all; returns how many."""
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for row in rows:
            count += 1
            # Lone surrogates are escaped: they are no UTF-8.
            yield f"{json.dumps(row, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace")

    write_pieces(path, lines())
    return count


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Appends one JSON line; a line cut by a kill is the last one, and is cut back on resume."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Yields a folder to fill; it takes the place of `path` on success, and goes on failure."""
    aside = path.with_name(f".{path.name}.partial")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
            for file in sorted(aside.rglob("*")):
                _flush(file)
            _flush(aside)
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                os.rename(path, old)
            os.rename(aside, path)
            _flush(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_folder(path: Path) -> str:
    """Hash of the names and contents of every file below `path`; where it stands does not count."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json({file.relative_to(path).as_posix(): sha256_file(file) for file in files})


def user_cache() -> Path:
    """A folder of the user's own for what can be made again; a temporary one where none may be."""
    # RuntimeError: the user has no home.
    with contextlib.suppress(OSError, RuntimeError):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "fourstage"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(_temporary())


@functools.cache
def _temporary() -> str:
    return tempfile.mkdtemp(prefix="fourstage-cache-")
