"""Processes that train together, for the tests of layouts."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
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


def launched(recipe: Path, out: Path, processes: int, overrides: list[str]) -> subprocess.Popen:
    """The run in a session of its own, so that all of its processes can be killed at once."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    asked = ["-m", "fourstage", "run", recipe, "--out", out, "compute.workers=1", *overrides]
    return subprocess.Popen(
        [sys.executable, *(launch if processes > 1 else []), *asked],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def run_together(recipe: Path, out: Path, processes: int, overrides: list[str]) -> str:
    process = launched(recipe, out, processes, overrides)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-4000:]
    return said


def lines(run: Path) -> int:
    """Rows that the stages wrote so far."""
    return sum(path.read_bytes().count(b"\n") for path in run.glob("*/metrics.jsonl"))


def kill_all(process: subprocess.Popen) -> None:
    """torchrun starts its processes in sessions of their own: they are found by their parent."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    for pid in [process.pid, *map(int, found)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


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
    children, pipes = _forked(int(processes), function, json.loads(arguments))
    found = []
    for pipe in pipes:
        with os.fdopen(pipe, "rb") as file:
            found.append(file.read())
    if any(code > 0 for code in _codes(children)):
        sys.exit(1)
    print(json.dumps([json.loads(text) if text else None for text in found]))


def killed_together(work: str, folder: Path, cases: dict[str, tuple[int, Any]]) -> dict[str, int]:
    """Does `work(group, folder, argument)` of each case twice, on so many processes: undisturbed in
    `folder/<case>/undisturbed`, and in `folder/<case>/killed` with all processes killed three times
    after random rows of its metrics.jsonl. How often kills struck, by case."""
    seed = os.environ.get("FOURSTAGE_KILL_SEED", str(random.randrange(10**6)))
    print(f"FOURSTAGE_KILL_SEED={seed}")
    program = "import sys, parallel_support as p; p.kill_often(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, work, str(folder), json.dumps(cases), seed],
        cwd=TESTS, env=environment(), capture_output=True, text=True, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


def kill_often(work: str, folder: str, cases: str, seed: str) -> None:
    """What `killed_together` starts; prints how often kills struck."""
    import importlib

    import torch

    # Imported once, so that a fork costs nothing.
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel

    torch.set_num_threads(1)
    module, name = work.split(":")
    function, draw = getattr(importlib.import_module(module), name), random.Random(int(seed))
    struck: dict[str, int] = {}
    for case, (processes, argument) in json.loads(cases).items():
        undisturbed, killed = (Path(folder) / case / end for end in ("undisturbed", "killed"))
        _finish(processes, function, [str(undisturbed), argument])
        total = (undisturbed / "metrics.jsonl").read_bytes().count(b"\n")
        struck[case] = 0
        for moment in sorted(draw.sample(range(1, total), 3)):
            children, pipes = _forked(processes, function, [str(killed), argument])
            wait_for_rows(killed, moment)
            time.sleep(draw.uniform(0, 0.1))
            for child in children:
                os.kill(child, signal.SIGKILL)
            struck[case] += -signal.SIGKILL in _codes(children)
            for pipe in pipes:
                os.close(pipe)
        _finish(processes, function, [str(killed), argument])
    print(json.dumps(struck))


def _finish(processes: int, function: Callable, arguments: list) -> None:
    children, _ = _forked(processes, function, arguments)
    if any(_codes(children)):
        sys.exit(1)


def wait_for_rows(stage: Path, number: int) -> None:
    """Waits until the metrics.jsonl of a stage's folder has so many rows."""
    until = time.monotonic() + 60
    path = stage / "metrics.jsonl"
    while time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.002)
    raise AssertionError(f"{path} never had {number} rows")


def _forked(count: int, function: Callable, arguments: list) -> tuple[list[int], list[int]]:
    """Forks processes that call `function`: their ids, and the pipes that their answers come by."""
    port = free_port()
    pipes, children = [], []
    for rank in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            os._exit(_child(rank, count, port, function, arguments, writing))
        os.close(writing)
        pipes.append(reading)
        children.append(child)
    return children, pipes


def _codes(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


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
