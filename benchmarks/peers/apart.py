"""One run in a process of its own: what it holds is gone when it ends."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Failed(Exception):
    """The run ended without an answer."""


def _answer(pipe: Connection, function: Callable[[Any], Any], job: Any) -> None:
    try:
        pipe.send((True, function(job)))
    except BaseException as error:
        traceback.print_exc()
        pipe.send((False, f"{type(error).__name__}: {str(error)[:500]}"))


def apart(function: Callable[[Any], Any], job: Any, seconds: float | None = None) -> Any:
    """`function(job)`, both importable or picklable, ended after `seconds`.

    Raises:
        Failed: it raised, was ended by the system, or took longer.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_answer, args=(theirs, function, job), daemon=True)
    process.start()
    theirs.close()
    if not ours.poll(seconds):
        process.kill()
        raise Failed(f"it took longer than {seconds:.0f} s")
    try:
        worked, answer = ours.recv()
    except EOFError:
        process.join()
        raise Failed(f"its process ended with code {process.exitcode}") from None
    process.join()
    if not worked:
        raise Failed(answer)
    return answer
