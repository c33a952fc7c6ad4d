"""The folder that a program may write in: made, held, looked at, and deleted.

Who made a folder holds a lock on it (flock) until it has deleted it. The kernel lets go of a lock
when its process dies in whatever way, so a folder that nobody holds is one that was left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

_PREFIX = "fourstage-program-"
# More files than these are as bad as too large ones.
_MOST_FILES = 256
# A deleted file takes room as long as it is mapped, and needs no open file for that.
_MOST_MAPPED = 64


@contextlib.contextmanager
def own_folder(all_must_go: bool) -> Generator[str]:
    """A folder that is deleted afterwards; no other process takes it for one that was left.

    Args:
        all_must_go: whether it is an error if something in it cannot be deleted.
    """
    folder, held = _made()
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=not all_must_go)
        finally:
            os.close(held)


def _made() -> tuple[str, int]:
    """A new folder, and what holds it."""
    while True:
        folder = os.path.realpath(tempfile.mkdtemp(prefix=_PREFIX))
        with contextlib.suppress(FileNotFoundError):
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            # A file system without locks lets nobody else take one either.
            with contextlib.suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX)
            # Before it was held it may have been taken for one that was left.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(folder), os.fstat(held)):
                    return folder, held
            os.close(held)


def remove_left() -> None:
    """Deletes the folders of processes of this user that ended without doing so."""
    with os.scandir(tempfile.gettempdir()) as entries:
        found = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    for path in found:
        # Its process lives and holds it, or it is somebody else's, or it has just gone.
        with contextlib.suppress(OSError), _opened(path) as folder:
            if os.fstat(folder).st_uid == os.getuid():
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _opened(path: str) -> Generator[int]:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield folder
    finally:
        os.close(folder)


def is_full(folder: str, most: int) -> bool:
    """Whether its files have more bytes together, or are too many."""
    size = files = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            files += 1
            with contextlib.suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_size
            if files > _MOST_FILES or size > most:
                return True
    return False


def maps_too_many(folder: str, process: int) -> bool:
    """Whether a process has too many files of the folder mapped; Linux alone tells."""
    # address, rights, offset, device, number of the file, path
    fields = [line.split(None, 5) for line in _mapped(process).splitlines()]
    inside = os.fsencode(folder) + b"/"
    mapped = {each[4] for each in fields if len(each) == 6 and each[5].startswith(inside)}
    return len(mapped) > _MOST_MAPPED


def _mapped(process: int) -> bytes:
    """What all threads have mapped, as the first that lives tells it: the oldest may have ended."""
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                if found := (thread / "maps").read_bytes():
                    return found
    return b""
