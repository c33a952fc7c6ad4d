"""Signals at bad moments, and processes that meet in one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fourstage.errors import InputError, Interrupted
from fourstage.pipeline.lock import NAME, locked
from fourstage.training import checkpoint
from fourstage.training.checkpoint import Checkpoints
from fourstage.training.signals import StopRequest
from pipeline_support import call, environment, recipe_file, started, tiny
from training_support import (
    BufferSource,
    TinySource,
    same_bits,
    tiny_model,
    trainer,
    weights_of,
)

HOST = socket.gethostname()


class Struck(BufferSource):
    """Signals its own process before some of its batches."""

    def __init__(self, *steps: int, number: int = signal.SIGTERM):
        super().__init__()
        self.steps, self.number = steps, number

    def batch(self, step):
        for _ in range(self.steps.count(step)):
            os.kill(os.getpid(), self.number)
        return super().batch(step)


def _goes_on(folder: Path, undisturbed: Path, **keywords) -> bool:
    straight, resumed = tiny_model(), tiny_model()
    trainer(undisturbed, straight, BufferSource(), **keywords).train()
    trainer(folder, resumed, BufferSource(), **keywords).train()
    return same_bits(weights_of(straight), weights_of(resumed))


def test_a_signal_while_a_checkpoint_is_written_leaves_both_whole(tmp_path, monkeypatch):
    """The checkpoint of step 4 is still being written when the signal comes in step 5."""
    signalled, save = threading.Event(), checkpoint.save_tensors
    written: list[str] = []

    def slow(path: Path, tensors: dict) -> None:
        if "00000004" in str(path):
            assert signalled.wait(30)
            time.sleep(0.05)
        save(path, tensors)
        written.append(path.parent.name)

    class Signals(Struck):
        def batch(self, step):
            batch = super().batch(step)
            if step == 4:
                assert not any("00000004" in name for name in written)
                signalled.set()
            return batch

    keywords = {"checkpoint_every": 4}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", slow)
        with pytest.raises(Interrupted, match="stopped by SIGTERM after step 5 of 12 and saved"):
            trainer(tmp_path / "a", source=Signals(4), **keywords).train()
    assert Checkpoints(tmp_path / "a" / "checkpoints").steps() == [4, 5]
    assert _goes_on(tmp_path / "a", tmp_path / "b", **keywords)


def test_a_second_ctrl_c_stops_at_once_and_the_checkpoint_before_stays(tmp_path):
    keywords = {"checkpoint_every": 4}
    source = Struck(6, 6, number=signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "a", source=source, **keywords).train()
    assert 6 not in source.asked, "the step was not finished"
    assert Checkpoints(tmp_path / "a" / "checkpoints").steps() == [4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert _goes_on(tmp_path / "a", tmp_path / "b", **keywords)


def test_two_ctrl_c_end_a_run_with_130_and_a_line(tmp_path):
    slow = ("pretrain.steps=100000", "world.documents=2000", "pretrain.checkpoint_every=0")
    recipe, run = recipe_file(tmp_path, tiny(*slow)), tmp_path / "run"
    process = started("run", recipe, "--out", run)
    metrics = run / "pretrain" / "metrics.jsonl"
    while not metrics.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "run the same command again to go on" in line and "Traceback" not in said


def test_a_signal_in_the_very_last_step_is_not_forgotten(tmp_path):
    """It comes when the loop no longer looks: who watched before is told."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        result = trainer(
            tmp_path,
            source=TinySource(),
            validate_every=12,
            validate=lambda: os.kill(os.getpid(), signal.SIGTERM) or {"validation_loss": 1.0},
        ).train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] and result.steps == 12


def test_a_signal_that_was_acted_on_is_not_told_twice():
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(Interrupted), StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            if stop.came:
                raise Interrupted("saved")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == []


# Two processes in one folder


def test_a_second_process_is_refused_with_the_process_and_host_of_the_first(tmp_path, capsys):
    recipe, run = recipe_file(tmp_path, tiny("world.documents=2000000")), tmp_path / "run"
    first = started("run", recipe, "--out", run)
    try:
        while not (run / NAME).exists() or not (run / NAME).read_text():
            assert first.poll() is None
            time.sleep(0.01)
        code, _, told = call(capsys, "run", recipe, "--out", run)
        assert code == 2
        assert f"{run} is in use by another process (process {first.pid} on {HOST})" in told
        assert (run / NAME).read_text() == f"process {first.pid} on {HOST}\n"
    finally:
        first.kill()
        first.communicate()
    said: list[str] = []
    with locked(run, said.append):  # what a killed process holds is free at once
        assert (run / NAME).read_text() == f"process {os.getpid()} on {HOST}\n"
    assert said == [] and (run / NAME).read_text() == ""


def test_the_lock_of_a_process_that_is_gone_is_taken_over_and_another_host_is_named(tmp_path):
    for holder, told in (
        (f"process 999999999 on {HOST}\n", False),
        ("process 7 on node12\n", True),
    ):
        (tmp_path / NAME).write_text(holder)
        said: list[str] = []
        with locked(tmp_path, said.append):
            pass
        words = ["taking over from process 7 on node12, which did not come to its end"]
        assert said == (words if told else [])


def test_a_holder_on_another_host_is_named_where_the_lock_is_shared(tmp_path):
    with open(tmp_path / NAME, "w") as held:
        held.write("process 7 on node12\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"another process \(process 7 on node12\)"):
            locked(tmp_path).__enter__()


def test_a_file_system_without_locks_goes_by_the_name_of_the_holder(tmp_path, monkeypatch):
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuses)
    living = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / NAME).write_text(f"process {living.pid} on {HOST}\n")
        with pytest.raises(InputError, match=f"process {living.pid} on {HOST}"):
            locked(tmp_path, lambda line: None).__enter__()
    finally:
        living.kill()
        living.wait()
    said: list[str] = []
    with locked(tmp_path, said.append):
        pass
    assert said == [
        f"the file system of {tmp_path} has no locks: let no other host work on the run"
    ]


def test_a_run_that_ends_with_a_fault_leaves_no_name_in_the_lock(tmp_path):
    with pytest.raises(Interrupted), locked(tmp_path):
        raise Interrupted("stopped")
    assert (tmp_path / NAME).read_text() == ""


# The end of a process


@pytest.mark.parametrize(("option", "code"), [("--version", 0), ("--versoin", 2)])
@pytest.mark.parametrize("processes", [1, 2])
def test_one_of_several_processes_leaves_without_the_end_of_the_interpreter(
    processes, option, code
):
    """There threads of its groups would ask for an interpreter that is gone, and it be aborted."""
    program = (
        "import atexit; atexit.register(print, 'the end of the interpreter')\n"
        f"from fourstage.cli.app import main; main([{option!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env=environment() | {"WORLD_SIZE": str(processes), "RANK": "0"},
    )  # fmt: skip
    assert done.returncode == code
    assert ("fourstage" in done.stdout) == (code == 0)
    assert ("did you mean '--version'?" in done.stderr) == (code == 2)
    assert ("the end of the interpreter" in done.stdout) == (processes == 1)
