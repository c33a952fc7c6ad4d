"""Memory of the machine: how much of it is free, and the most that a process took of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What torch's allocators and CUDA's libraries say where they raise a plain RuntimeError.
_WORDS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
# (limit, used) of the control group that a container runs in, of its second version and its first.
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
_STATUS = Path("/proc/self/status")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocator found no room."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def let_go(device: torch.device) -> None:
    """Lets go of what a device's allocator keeps for later, behind a pass that found no room."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def in_halves(portions: Iterable[list[int]], work: Callable[[list[int]], None]) -> None:
    """Does `work` on each portion; one that finds no memory is worked on in halves, anew.

    Raises:
        Exception: what `work` raises; also for lack of memory, where the portion is of one.
    """
    waiting = deque(portions)
    while waiting:
        portion = waiting.popleft()
        if not _fits(portion, work):
            middle = len(portion) // 2
            waiting.extendleft((portion[middle:], portion[:middle]))


def _fits(portion: list[int], work: Callable[[list[int]], None]) -> bool:
    try:
        work(portion)
    except (RuntimeError, MemoryError) as error:
        if len(portion) == 1 or not is_out_of_memory(error):
            raise
        return False
    return True


def free_bytes(device: torch.device) -> float | None:
    """Bytes that this process can still take on a device; None where nothing tells.

    On a CPU the least of what the machine has left, of what its container leaves it, and of a limit
    set for the process (`ulimit -v`).
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + cached)
    if device.type != "cpu":
        return None
    known = (_of_machine(), _of_container(), _of_process())
    return min((each for each in known if each is not None), default=None)


def _of_machine() -> float | None:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _of_container() -> float | None:
    for limit, used in _CONTROL_GROUPS:
        # "max" where there is no limit, and no such file where there is no control group.
        with contextlib.suppress(OSError, ValueError):
            return float(Path(limit).read_text()) - float(Path(used).read_text())
    return None


def _of_process() -> float | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _kilobytes(_STATUS, "VmSize")
    return None if limit == resource.RLIM_INFINITY or taken is None else limit - taken


def _kilobytes(path: Path, name: str) -> float | None:
    """Bytes of an entry such as `VmSize:  1024 kB`."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * float(line.split()[1])
    return None


def give_back() -> None:
    """Gives the system the memory that this process has freed."""
    gc.collect()
    # Of GNU's C library; others give it back by themselves.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class PeakMemory:
    """The most memory that is held from its making on.

    Attributes:
        before: bytes that were held then.
    """

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            self.before = float(torch.cuda.memory_allocated(device))
            return
        give_back()
        # Sets the highest mark back to what is held now; where it cannot, it is the process's.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _kilobytes(_STATUS, "VmRSS") or 0.0

    @property
    def bytes(self) -> float:
        """What the allocator held at most on CUDA; elsewhere what the process had in memory."""
        if self._device.type == "cuda":
            import torch

            return float(torch.cuda.max_memory_allocated(self._device))
        highest = _kilobytes(_STATUS, "VmHWM")
        if highest is not None:
            return highest
        # Kilobytes on Linux, bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
