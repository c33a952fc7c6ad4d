"""Runs a program in a process of its own, with limits, and tells how it ended.

Contained on Linux, without root: one process, which ends with the one that started it (seccomp), no
network and no signals to others (seccomp), one flat folder to write in, which is deleted
afterwards, and nothing to read but Python and shared libraries (Landlock), limits on CPU time,
memory, file size and open files (rlimits), on wall time, printed bytes, threads and the size of the
folder (watched from outside). Elsewhere there are only the limits, and a program can do what its
user can.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fourstage.rewards.code.folders import is_full, maps_too_many, own_folder

# How often the folder is looked at, and the threads are counted.
_LOOK_SECONDS = 0.05
# Linux limits the threads of a user, who may have many; those of one process are counted here.
_MOST_THREADS = 128
# The child's own words.
_MOST_TOLD = 1_000_000
_SOURCE = str(Path(__file__).parents[3])
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop()); "
    "from fourstage.rewards.code.child import main; sys.path.pop(0); main()"
)
# What a contained program must not be able to do, tried once before any is run.
_TRIES = {
    "start a process": "import os\nif os.fork() == 0: os._exit(0)",
    "open a socket": "import socket\nsocket.socket()",
    "signal another process": "import os\nos.kill(os.getppid(), 0)",
    "outlive its parent": "import ctypes\nassert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "write outside its folder": "open({outside!r}, 'w')",
    "read outside its folder": "open({outside!r})",
}


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        seconds: of wall time. cpu_seconds: of one process.
        memory: bytes of address space. file_size: bytes of a file, and of all files it leaves.
        output: bytes it may print.
    """

    seconds: float = 10.0
    cpu_seconds: float = 5.0
    memory: int = 1_000_000_000
    file_size: int = 16_000_000
    output: int = 1_000_000


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        fault: which limit it broke, or what the machine refused; empty where it ended by itself.
        printed: what it printed, as far as it was read.
        told: what the child told of it; empty where it ended before it could.
    """

    fault: str = ""
    printed: str = ""
    told: dict[str, Any] = field(default_factory=dict)


class Runner:
    """Runs programs with the same limits.

    Args:
        contain: whether a program that cannot be contained is not run.
        packages: whether it may import what is installed beside Python.
    """

    def __init__(self, limits: Limits, contain: bool = True, packages: bool = False):
        self.limits, self.contain, self.packages = limits, contain, packages

    def script(self, code: str, given: str = "") -> Ended:
        """Runs code as a program that reads `given` from its standard input."""
        return self._run({"kind": "script", "code": code}, given)

    def tests(self, code: str, tests: Sequence[str]) -> Ended:
        """Runs code, then each test where what it defined is known."""
        return self._run({"kind": "tests", "code": code, "tests": list(tests)})

    def leak(self) -> str:
        """What is not contained on this machine, and why; empty where all is."""
        with tempfile.NamedTemporaryFile() as outside:
            tries = {name: code.format(outside=outside.name) for name, code in _TRIES.items()}
            ended = self._run({"kind": "look", "tries": tries})
        if "uncontained" in ended.told:
            return str(ended.told["uncontained"])
        if "tried" not in ended.told:
            return ended.fault or "the process that looked ended without a word"
        through = [name for name, stopped in ended.told["tried"].items() if not stopped]
        return f"a program could {' and '.join(through)}" if through else ""

    def _run(self, order: dict[str, Any], given: str = "") -> Ended:
        with own_folder(all_must_go=self.contain) as folder:
            return self._run_in(folder, order, given)

    def _run_in(self, folder: str, order: dict[str, Any], given: str) -> Ended:
        key = secrets.token_hex(16)
        order |= {
            "key": key,
            "folder": folder,
            "parent": os.getpid(),
            "limits": asdict(self.limits),
            "contain": self.contain,
            "packages": _installed() if self.packages else [],
        }
        with _holding(json.dumps(order)) as orders, _holding(given) as typed:
            read, write = os.pipe()
            try:
                process = self._start(orders.fileno(), write, typed, folder)
            finally:
                os.close(write)
            try:
                watch = _Watch(process, read, self.limits, folder)
                fault = watch.until_the_end()
            finally:
                _end(process)
                os.close(read)
        told = _told(bytes(watch.told), key)
        return Ended(fault or _signalled(process), watch.printed.decode("utf-8", "replace"), told)

    def _start(self, orders: int, told: int, typed: Any, folder: str) -> subprocess.Popen[bytes]:
        # Isolated from the environment; without site the folder of packages is not even looked for.
        flags = ["-I", "-B", *([] if self.packages else ["-S"])]
        return subprocess.Popen(
            [sys.executable, *flags, "-c", _START, str(orders), str(told), _SOURCE],
            stdin=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(orders, told),
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder}
            | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            start_new_session=True,
        )


class _Watch:
    """Reads what a process prints and tells, until it ends or goes too far."""

    def __init__(self, process: subprocess.Popen[bytes], told: int, limits: Limits, folder: str):
        self.process, self.limits, self.folder = process, limits, folder
        self.printed, self.told = bytearray(), bytearray()
        self._selector = selectors.DefaultSelector()
        assert process.stdout is not None
        self._selector.register(process.stdout.fileno(), selectors.EVENT_READ, self.printed)
        self._selector.register(told, selectors.EVENT_READ, self.told)

    def until_the_end(self) -> str:
        """The limit that was broken, or nothing."""
        deadline = time.monotonic() + self.limits.seconds
        look = time.monotonic() + _LOOK_SECONDS
        with self._selector:
            while self.process.poll() is None or self._selector.get_map():
                now = time.monotonic()
                if now >= deadline:
                    return f"ran longer than {self.limits.seconds:g} s"
                if now >= look:
                    look = now + _LOOK_SECONDS
                    if fault := self._too_much():
                        return fault
                if fault := self._read(min(look, deadline) - now):
                    return fault
        return ""

    def _too_much(self) -> str:
        if is_full(self.folder, self.limits.file_size):
            return f"wrote more than {self.limits.file_size:,} bytes or too many files"
        if maps_too_many(self.folder, self.process.pid):
            return "mapped too many files"
        if _threads(self.process.pid) > _MOST_THREADS:
            return f"started too many threads (more than {_MOST_THREADS})"
        return ""

    def _read(self, seconds: float) -> str:
        if not self._selector.get_map():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, seconds))
            return ""
        for key, _ in self._selector.select(max(0.0, seconds)):
            chunk = os.read(key.fd, 65536)
            key.data.extend(chunk)
            if not chunk:
                self._selector.unregister(key.fd)
        if len(self.printed) > self.limits.output or len(self.told) > _MOST_TOLD:
            return f"printed more than {self.limits.output:,} bytes"
        return ""


@contextlib.contextmanager
def _holding(text: str) -> Any:
    """An open file that holds the text, and has no name."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", "replace"))
        file.seek(0)
        yield file


def _installed() -> list[str]:
    paths = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    return [*dict.fromkeys(paths), str(Path(sys.prefix) / "pyvenv.cfg")]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all of its session; contained, it is the only one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _threads(process: int) -> int:
    """How many threads a process has; 0 where Linux does not tell."""
    try:
        # Behind the name in brackets, which a program chooses, it is the 18th field.
        said = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2]
        return int(said.split()[17])
    except (OSError, IndexError):
        return 0


def _signalled(process: subprocess.Popen[bytes]) -> str:
    """A death by signal: of the kernel's limits, or a crash."""
    if process.returncode >= 0:
        return ""
    number = -process.returncode
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return "took more CPU time than it may (or the machine had no memory left)"
    return f"ended by {signal.Signals(number).name}"


def _told(said: bytes, key: str) -> dict[str, Any]:
    """The last line with the right key: what a program writes there itself does not have it."""
    for line in reversed(said.splitlines()):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict) and found.pop("key", None) == key:
                return found
    return {}
