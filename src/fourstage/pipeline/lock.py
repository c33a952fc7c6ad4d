"""One process works on a run at a time; the system frees the lock when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fourstage.errors import InputError
from fourstage.files import explained

NAME = ".lock"


@contextmanager
def locked(run: Path) -> Generator[None]:
    """Holds the run's folder, which is made where it is missing.

    Raises:
        InputError: another process holds it.
    """
    with explained(run):
        run.mkdir(parents=True, exist_ok=True)
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
