"""Processes that train together, for the tests of layouts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).parent


def together(processes: int, work: str, *arguments: Any, timeout: float = 240) -> list[Any]:
    """What `work` ("module:function") returns on each of so many processes.

    It is called with this process's `Group` and the arguments, which are JSON, as is what it
    returns; None is the answer of one that was killed.
    """
    program = "import sys, parallel_support as p; p.main(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(processes), work, json.dumps(arguments)],
        cwd=TESTS, env=environment(), capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(processes: str, work: str, arguments: str) -> None:
    """Forks the processes, waits for them, and prints what each returned."""
    import importlib

    import torch

    torch.set_num_threads(1)
    module, name = work.split(":")
    function = getattr(importlib.import_module(module), name)
    count, port = int(processes), free_port()
    pipes, children = [], []
    for rank in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            os._exit(_child(rank, count, port, function, json.loads(arguments), writing))
        os.close(writing)
        pipes.append(reading)
        children.append(child)
    found = []
    for pipe in pipes:
        with os.fdopen(pipe, "rb") as file:
            found.append(file.read())
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(code > 0 for code in codes):
        sys.exit(1)
    print(json.dumps([json.loads(text) if text else None for text in found]))


def _child(rank: int, count: int, port: int, function: Callable, arguments: list, pipe: int) -> int:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    from fourstage.parallel.group import Group

    try:
        group = Group.from_environment("cpu")
        with mock.patch("os.fsync"):
            answer = function(group, *arguments)
        with os.fdopen(pipe, "wb") as file:
            file.write(json.dumps(answer).encode())
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
