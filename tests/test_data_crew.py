"""A crew answers in order, passes on what goes wrong, and ends with whoever began it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time

import pytest

from fourstage.data.crew import Crew
from fourstage.errors import InputError, MachineError


def answering(factor: int):
    def answer(task: tuple[int, float]) -> int:
        number, seconds = task
        time.sleep(seconds)
        if number == -1:
            raise InputError("minus one is no task")
        if number == -2:
            os.kill(os.getpid(), signal.SIGKILL)
        return factor * number

    return answer


def crew(workers: int) -> Crew:
    return Crew(functools.partial(answering, 3), workers)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_answers_come_in_the_order_of_the_tasks(workers) -> None:
    tasks = [(n, 0.05 if n % 5 == 0 else 0.0) for n in range(40)]
    assert list(crew(workers).answers(tasks)) == [3 * n for n in range(40)]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_raises_is_raised_here(workers) -> None:
    with pytest.raises(InputError, match="minus one is no task"):
        list(crew(workers).answers([(1, 0.0), (-1, 0.0), (2, 0.0)]))


def test_a_worker_that_is_killed_is_told_and_nothing_hangs() -> None:
    with pytest.raises(MachineError, match="a worker process ended"):
        list(crew(2).answers([(n, 0.0) if n != 9 else (-2, 0.0) for n in range(30)]))


def test_tasks_are_asked_for_as_they_are_needed() -> None:
    asked: list[int] = []

    def tasks():
        for number in range(100):
            asked.append(number)
            yield number, 0.0

    answers = crew(2).answers(tasks())
    for _ in range(10):
        next(answers)
    assert len(asked) <= 20
    answers.close()


def test_large_tasks_and_answers_do_not_block_each_other() -> None:
    large = Crew(repeated, 2)
    answers = list(large.answers([bytes([n]) * 3_000_000 for n in range(12)]))
    assert [len(answer) for answer in answers] == [6_000_000] * 12


def repeated():
    return lambda task: task + task


_PARENT = """
import functools, os, sys, time
sys.path.insert(0, sys.argv[1])
from test_data_crew import crew
if __name__ == "__main__":
    answers = crew(2).answers((n, 0.01) for n in range(10**6))
    next(answers)
    import multiprocessing
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def test_workers_end_when_whoever_began_them_is_killed(tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    here = os.path.dirname(__file__)
    parent = subprocess.Popen(
        [sys.executable, str(script), here], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(_is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(map(_is_alive, workers))


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
