"""One process works on a run at a time; the system frees the lock when its holder dies."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fourstage.errors import InputError
from fourstage.files import explained
from fourstage.recipe import STAGES

NAME = ".lock"
# How files.write_bytes and files.atomic_folder call what they are still writing.
_UNFINISHED = re.compile(r"\..+\.(?:\d+\.tmp|partial|old)")


@contextmanager
def locked(run: Path) -> Generator[None]:
    """Holds the run's folder, which is made where it is missing.

    Raises:
        InputError: another process holds it, or there is a file in its place.
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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise InputError(
                f"{run} is in use by another process{f' ({holder})' if holder else ''}: wait for "
                "it to end, or give another folder with --out"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


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
