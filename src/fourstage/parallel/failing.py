"""One process's failure is everyone's, and is told once: by the process that failed first."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

_KEY = "fourstage/failed"
_GONE = ("connection closed by peer", "connection reset", "broken pipe", "remote process exited")


def is_the_one_to_tell(by_another: bool = False) -> bool:
    """Whether this process is the first to fail.

    Those that fail after it mostly do so because it is gone. Before the processes have met, all
    find the same fault, and rank 0 tells it.

    Args:
        by_another: the error says no more than that another process is gone.
    """
    if _processes() == 1:
        return True
    store = _store()
    if store is None:
        return os.environ.get("RANK", "0") == "0"
    try:
        return store.add(_KEY, 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return not by_another


def explained(error: Exception) -> str | None:
    """An error in words, if it says no more than that another process is gone."""
    words = str(error).lower()
    if _processes() == 1 or not any(sign in words for sign in _GONE):
        return None
    return (
        "another process ended without a word (killed, or its host was lost): run again to go on "
        "from the last checkpoint, or let torchrun do so with --max-restarts"
    )


def name_of_process() -> str:
    """`process 3 of 8: `, or nothing where there is one."""
    rank = os.environ.get("RANK", "0")
    return f"process {rank} of {_processes()}: " if _processes() > 1 else ""


def leave(code: int) -> NoReturn:
    """Ends the process with an exit code; one of several without the interpreter's own end.

    There gloo's threads, which outlive `destroy_process_group`, may still ask for the interpreter,
    and the system aborts a process whose work is done (https://github.com/pytorch/pytorch/issues/190489).
    """
    if _processes() == 1:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader is gone
            stream.flush()
    os._exit(code)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _store() -> Any:
    """What torchrun's processes share beside their sums; None before they have met."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store()
