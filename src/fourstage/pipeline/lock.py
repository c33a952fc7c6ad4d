"""One process works on a run at a time; the system frees the lock when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from fourstage.errors import InputError
from fourstage.files import explained
from fourstage.recipe import STAGES

NAME = ".lock"
# How files.write_bytes and files.atomic_folder call what they are still writing.
_UNFINISHED = re.compile(r"\..+\.(?:\d+\.tmp|partial|old)")
_HOLDER = re.compile(r"process (\d+) on (\S+)")
# What file systems without locks answer (Lustre without `flock`, some of FUSE).
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(run: Path, say: Callable[[str], None] = print) -> Generator[None]:
    """Holds the run's folder, which is made where it is missing.

    The lock is the system's (`flock`) and goes with its holder, on whatever host; what stands in
    the file is for people. Where the file system has no locks, what stands there decides.

    Raises:
        InputError: another process holds it, or there is a file in its place.
        MachineError: the folder cannot be written.
    """
    with explained(run):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{run} is a file, or lies in one: give a folder for the run with --out"
            ) from error
        descriptor = os.open(run / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(descriptor, run, say)
        with explained(run):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            # A name that is left is that of a holder who was killed.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int, run: Path, say: Callable[[str], None]) -> None:
    """Raises `InputError` where another process works on the run."""
    holder = os.pread(descriptor, 300, 0).decode("utf-8", "replace").strip()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(run, holder) from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        if _is_alive(holder):
            raise _in_use(run, holder) from error
        say(f"the file system of {run} has no locks: let no other host work on the run")
    known = _HOLDER.fullmatch(holder)
    if known and known[2] != socket.gethostname():
        say(f"taking over from {holder}, which did not come to its end")


def _in_use(run: Path, holder: str) -> InputError:
    return InputError(
        f"{run} is in use by another process{f' ({holder})' if holder else ''}: wait for it to "
        "end, or give another folder with --out"
    )


def _is_alive(holder: str) -> bool:
    """Whether a holder is a process of this host that is still there."""
    known = _HOLDER.fullmatch(holder)
    if known is None or known[2] != socket.gethostname():
        return False
    try:
        os.kill(int(known[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return int(known[1]) != os.getpid()


def clear_unfinished(run: Path) -> None:
    """Clears what a process killed while writing left aside; the caller holds the run's lock."""
    parts = (run / name for name in ("data", "tokenizer", *STAGES))
    for path in [*run.glob(".*"), *(path for part in parts for path in part.rglob(".*"))]:
        if not _UNFINISHED.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
