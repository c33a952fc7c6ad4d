"""The process that runs a model's code: limits itself, then runs code and tests, then tells.

Started by `running` with a bare interpreter; the standard library is all it may import. What it
tells goes through a pipe of its own, so that printing tells nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
import sysconfig
from collections.abc import Callable, Iterable
from typing import Any

from fourstage.rewards.code import landlock, syscalls
from fourstage.rewards.code.syscalls import Unavailable

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")
# Shared libraries that modules of the standard library load, time zones, and names of locales.
_SHARED = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    *("/etc/localtime", "/usr/share/zoneinfo", "/usr/share/locale", "/usr/share/i18n"),
)
_PARENT_DEATH_SIGNAL, _KILL = 1, 9
_OPEN_FILES = 64
_LONGEST_REASON = 300


def main() -> None:
    """Arguments: the descriptor of the order (JSON), and that to tell on."""
    order, told = int(sys.argv[1]), int(sys.argv[2])
    with open(order, encoding="utf-8") as file:
        orders = json.load(file)

    def tell(**what: Any) -> None:
        os.write(told, json.dumps({**what, "key": orders["key"]}).encode() + b"\n")

    try:
        confine(orders)
    except (Unavailable, OSError, ValueError) as error:
        tell(uncontained=str(error))
        return
    if orders["kind"] == "look":
        tell(tried=_tries(orders["tries"]))
    elif orders["kind"] == "script":
        _run_script(orders["code"], tell)
    else:
        _run_tests(orders["code"], orders["tests"], tell)


def confine(orders: dict[str, Any]) -> None:
    """Sets limits, and contains this process where that is asked for.

    Raises:
        Unavailable: it cannot be contained here.
    """
    os.chdir(orders["folder"])
    contain, limits = orders["contain"], orders["limits"]
    if sys.platform == "linux":
        # Whoever waits for this process may be killed; before the filter, which refuses to undo it.
        if ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, _KILL, 0, 0, 0) != 0:
            raise Unavailable("Linux does not end a program with its parent")
        if os.getppid() != orders["parent"]:
            raise Unavailable("who started it has ended")
    if contain:
        if sys.platform != "linux":
            raise Unavailable("programs are contained on Linux only")
        syscalls.give_up_privileges()
        landlock.restrict(_readable(orders["packages"]), orders["folder"], _DEVICES)
    for name, limit in (
        ("RLIMIT_CPU", max(1, round(limits["cpu_seconds"]))),
        ("RLIMIT_AS", limits["memory"]),
        ("RLIMIT_FSIZE", limits["file_size"]),
        ("RLIMIT_NOFILE", _OPEN_FILES),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
    ):
        _limit(name, limit, contain)
    if contain:
        syscalls.install()


def _limit(name: str, limit: int, must: bool) -> None:
    kind = getattr(resource, name, None)
    try:
        if kind is not None:
            resource.setrlimit(kind, (limit, limit))
    except (OSError, ValueError) as error:
        # macOS refuses some of them.
        if must:
            raise Unavailable(f"{name}={limit} is refused ({error})") from error


def _readable(packages: Iterable[str]) -> list[str]:
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    # Where the libraries of its modules lie, as in conda's environments.
    libraries = sysconfig.get_config_var("LIBDIR")
    return [*standard, *([libraries] if libraries else []), *packages, *_SHARED]


def _run_script(code: str, tell: Callable[..., None]) -> None:
    """Runs code as a program of its own; what it prints is judged elsewhere."""
    why = _run(code, {"__name__": "__main__"})
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    tell(why=why)


def _run_tests(code: str, tests: list[str], tell: Callable[..., None]) -> None:
    """Runs code, then each test in what it has defined."""
    space: dict[str, Any] = {"__name__": "response"}
    failed = _run(code, space)
    if failed:
        tell(passed=[False] * len(tests), why=failed)
        return
    reasons = [_run(test, space) for test in tests]
    why = next((f"test {n}: {each}" for n, each in enumerate(reasons, 1) if each), "")
    tell(passed=[not each for each in reasons], why=why)


def _run(code: str, space: dict[str, Any]) -> str:
    """Why it failed; nothing where it ran to its end, or left with 0 as a program may."""
    try:
        exec(compile(code, "<response>", "exec"), space)
    except SystemExit as error:
        is_program = space["__name__"] == "__main__"
        return "" if is_program and error.code in (None, 0) else f"exit({error.code!r})"
    except BaseException as error:
        with contextlib.suppress(Exception):
            return f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        return type(error).__name__
    return ""


def _tries(tries: dict[str, str]) -> dict[str, str]:
    """name -> what stopped a piece of code that should not get through; empty where nothing did."""
    return {name: _run(code, {"__name__": "try"}) for name, code in tries.items()}
