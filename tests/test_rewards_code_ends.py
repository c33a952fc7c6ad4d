"""A program ends with the training that runs it, and what a killed training left is deleted."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from fourstage.rewards.code import running
from fourstage.rewards.code.folders import own_folder
from fourstage.rewards.code.reward import Code
from test_rewards_code import LEAVING, QUICK, contained, processes_in


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """Where programs have their folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


CLINGING = {
    "clears the signal": "ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)",
    "ignores signals": "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 10, 12, 13, 15)]",
    "ends its first thread": "threading.Thread(target=time.sleep, args=(30,)).start()\n" + LEAVING,
}
_RUNS_ONE = """
import sys
sys.path.append(sys.argv[1])
from fourstage.rewards.code.running import Limits, Runner
Runner(Limits(seconds=60)).script(sys.argv[2])
"""


@contextlib.contextmanager
def running_one(code: str, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """A process that runs code, once that has written the file `ready`."""
    source = str(Path(running.__file__).parents[3])
    owner = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _RUNS_ONE, source, code],
        env={"TMPDIR": str(folder)},
    )
    try:
        until(lambda: any(folder.glob("*/ready")), 20.0)
        yield owner
    finally:
        owner.kill()
        owner.wait()


def until(is_so: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)


@contained
@pytest.mark.parametrize("name", CLINGING)
def test_a_program_ends_with_the_training_that_is_killed(name, scratch) -> None:
    code = (
        "import ctypes, signal, threading, time\nopen('ready', 'w')\n"
        f"{CLINGING[name]}\ntime.sleep(30)"
    )
    with running_one(code, scratch) as owner:
        time.sleep(0.2)
        assert processes_in(scratch)
        owner.kill()
        until(lambda: not processes_in(scratch), 2.0)


@contained
def test_a_program_whose_training_ended_before_it_began_does_not_run(tmp_path) -> None:
    limits = {"cpu_seconds": 2, "memory": 400_000_000, "file_size": 1_000_000}
    orders = {"folder": str(tmp_path), "contain": True, "limits": limits, "packages": []}
    source = str(Path(running.__file__).parents[3])
    script = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from fourstage.rewards.code import child\n"
        f"child.confine({orders} | {{'parent': 1 + __import__('os').getppid()}})"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, source], capture_output=True, text=True
    )
    assert "Unavailable: who started it has ended" in done.stderr


@contained
def test_a_start_deletes_folders_that_were_left_and_none_that_is_in_use(scratch) -> None:
    ready = "open('ready', 'w')\nimport time\ntime.sleep(30)"
    with running_one(ready, scratch) as owner:
        (left,) = scratch.glob("*")
        owner.kill()
        owner.wait()
        assert (left / "ready").exists()
        (left / "ready").unlink()
        with running_one(ready, scratch), own_folder(True) as own:
            (used,) = (each.parent for each in scratch.glob("*/ready"))
            (scratch / "others").mkdir()
            Code(QUICK).start(print)
            assert set(scratch.iterdir()) == {used, Path(own), scratch / "others"}
            assert (used / "ready").exists()
