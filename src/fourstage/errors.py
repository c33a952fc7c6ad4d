"""The three ways in which a command ends badly, and the exit code of each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FourstageError(Exception):
    """An end that is explained in words; `exit_code` is what the process returns."""

    exit_code = 1


class InputError(FourstageError, ValueError):
    """The input was wrong: each fault is a line that says what, where and what to write instead."""

    exit_code = 2

    def __init__(self, *faults: str):
        self.faults = tuple(faults)
        super().__init__("\n".join(faults))


class MachineError(FourstageError, RuntimeError):
    """The machine failed (disk full, no such device); nothing finished is lost."""

    exit_code = 1


class FailedElsewhere(MachineError):
    """Another process that this one works with failed, and tells why itself."""


class Interrupted(FourstageError):
    """Stopped by a signal after saving; the message says how to go on."""

    exit_code = 130


def nearest(word: str, options: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest option, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
