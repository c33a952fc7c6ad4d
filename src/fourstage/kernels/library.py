"""The C kernels, compiled once a machine with its own compiler and kept in the user's cache.

Where there is no compiler, everything runs through torch alone: `load` then gives None, and says
why once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourstage.files import sha256_file, user_cache

_SOURCES = ("attention.c", "elements.c")
_HEADERS = ("lanes.h", "product.h")
# No -ffast-math: what is not finite has to stay so, for the guards to see it.
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_SECONDS = 120


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had (`why_not` says why)."""
    global _reason
    _reason = ""
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError, _Unavailable) as error:
        _reason = str(error)
        return None


def function(name: str, arguments: Sequence[Any], result: Any = None) -> Any:
    """A kernel by its name, with the ctypes of what it takes and gives."""
    found = getattr(load(), name)
    if found.argtypes is None:
        found.argtypes, found.restype = list(arguments), result
    return found


_reason = ""


def why_not() -> str:
    """Why there are no kernels, in a clause; empty where there are."""
    load()
    return _reason


class _Unavailable(Exception):
    """What is missing, in a clause."""


def _compiler() -> str:
    asked = os.environ.get("CC")
    for name in (asked, "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise _Unavailable("no C compiler was found (cc, gcc, clang)")


def _compiled() -> Path:
    """The path of the library, compiled now where this machine has not done so before."""
    compiler, folder = _compiler(), Path(__file__).parent
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True
    ).stdout
    key = hashlib.sha256()
    for part in (*(_read(folder / name) for name in (*_HEADERS, *_SOURCES)), version, *_FLAGS):
        key.update(part.encode() + b"\0")
    # -march=native: what runs here may not run on another processor of the same home directory.
    key.update(_processor().encode())
    path = user_cache() / f"kernels-{key.hexdigest()[:16]}.so"
    if _is_whole(path):
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        made = Path(aside) / path.name
        command = [compiler, *_FLAGS, "-o", str(made), *(str(folder / s) for s in _SOURCES), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode:
            first = next(iter(done.stderr.splitlines()), "no message")
            raise _Unavailable(f"{compiler} could not compile the kernels ({first})")
        _sum_of(path).write_text(sha256_file(made), encoding="ascii")
        # Renamed whole: another process that compiles at the same time ends with the same file.
        os.replace(made, path)
    return path


def _is_whole(path: Path) -> bool:
    """Whether a kept library is as it was written: to open one cut short ends the process."""
    kept = _sum_of(path)
    return path.exists() and kept.exists() and kept.read_text("ascii") == sha256_file(path)


def _sum_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _processor() -> str:
    """What tells processors apart that need code of their own."""
    try:
        lines = _read(Path("/proc/cpuinfo")).splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
