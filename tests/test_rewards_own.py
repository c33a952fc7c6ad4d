"""A person's own function is called as TRL calls them, apart, and what it does wrong is told."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from multiprocessing.connection import Connection

import pytest

from fourstage.errors import InputError
from fourstage.rewards.contracts import Item
from fourstage.rewards.own import Own
from fourstage.rewards.total import Part, Rewards
from fourstage.rewards.workers import Workers

FUNCTIONS = """
import math, os, sys, time
import neighbour

def lengths(prompts, completions, answer, **kwargs):
    assert set(kwargs) == {"ended", "tokens", "ground_truth", "level"}, kwargs
    return [len(p) + len(c) + (a or 0) for p, c, a in zip(prompts, completions, answer)]

def few(completions):
    return [neighbour.FACTOR * len(c) for c in completions]

def conversational(prompts, completions, **kwargs):
    return [p[-1]["content"] == c[0]["content"] for p, c in zip(prompts, completions)]

def odd(completions):
    odd_ones = {"nan": math.nan, "inf": -math.inf, "none": None, "text": "x"}
    return [odd_ones.get(c, 1) for c in completions]

def lone(completions):
    return 1.0

def short(completions):
    return [1.0]

def raises(completions):
    raise RuntimeError("no service today")

def needs(completions, gold):
    return [0.0]

def late(completions, ended):
    if "late" in completions:
        time.sleep(60)
    if "die" in completions:
        os._exit(7)
    if "leave" in completions:
        sys.exit("bye")
    return [1.0] * len(completions)

NUMBER = 3
"""
ITEMS = [
    Item("ab", "cde", True, 3, "t", {"answer": 1, "level": "easy"}),
    Item([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "u", False, 9),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    (tmp_path / "neighbour.py").write_text("FACTOR = 2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scored(function: str, items=ITEMS, **options):
    said: list[str] = []
    reward = Own(function, **options)
    try:
        reward.start(said.append)
        return reward.score(items), said
    finally:
        reward.close()


def test_columns_come_by_name_and_only_those_that_are_asked_for(folder) -> None:
    found, said = scored("rewards.py:lengths")
    assert [each.score for each in found] == [2 + 3 + 1, len("s\n\nu") + 1]
    assert "lengths() of rewards.py (sha256 " in said[0]
    assert [each.score for each in scored("rewards:few")[0]] == [6.0, 2.0]


def test_messages_are_given_as_trl_gives_them(folder) -> None:
    found, _ = scored("rewards.py:conversational", messages=True)
    assert [each.score for each in found] == [0.0, 1.0]


def test_numbers_that_are_none_are_faults_of_their_response_alone(folder) -> None:
    items = [Item("?", text) for text in ("nan", "inf", "none", "text", "fine")]
    found, _ = scored("rewards.py:odd", items)
    assert [each.score for each in found] == [None, None, None, None, 1.0]
    assert [bool(each.fault) for each in found] == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("lone", "returned float, and no list of numbers"),
        ("short", "returned 1 numbers for 2 responses"),
        ("raises", "RuntimeError: no service today"),
        ("needs", "the rows have no gold, which the function asks for"),
    ],
)
def test_a_function_that_fails_costs_the_batch_and_not_the_run(folder, function, said) -> None:
    found, _ = scored(f"rewards.py:{function}")
    assert len(found) == 2 and all(said in each.fault for each in found)


def test_what_no_row_has_is_told_before_training(folder) -> None:
    with Rewards([Part("mine", Own("rewards.py:needs"))]) as rewards:
        rewards.start(print)
        with pytest.raises(InputError) as told:
            rewards.check(ITEMS)
        (fault,) = told.value.faults
        assert fault.startswith("rl.rewards, mine: function=rewards.py:needs asks for gold, which")
        assert "answer, completions, ended, ground_truth" in fault
        rewards.check([*ITEMS, Item("?", "", columns={"gold": 1})])


def test_a_column_that_a_batch_has_no_row_of_is_given_as_none(folder) -> None:
    with Rewards([Part("mine", Own("rewards.py:lengths"))]) as rewards:
        rewards.start(print)
        rewards.check(ITEMS)
        assert rewards.score(ITEMS[1:]).scores == [len("s\n\nu") + 1]


def _plus_one():
    return lambda number: number + 1


def test_a_task_that_cannot_be_sent_costs_its_call_alone() -> None:
    workers: Workers = Workers(_plus_one, 2, seconds=30.0)
    try:
        with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
            workers.answers([1, lambda: None, 3])
        # No process keeps a task of the call that failed, nor the answer to one.
        for _ in range(2):
            answers = workers.answers([10, 20, 30])
            assert [each.value for each in answers] == [11, 21, 31]
    finally:
        workers.close()


def _dying_in_its_answer():
    return _die_in_the_answer


def _die_in_the_answer(task):
    """Is killed when it has written the beginning of a long answer; `well` it answers."""
    if task == "well":
        return "fine"
    (pipe,) = (each for each in gc.get_objects() if isinstance(each, Connection))
    os.write(pipe.fileno(), struct.pack("!i", 10**6) + bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_while_it_answers_costs_its_task_alone() -> None:
    workers: Workers = Workers(_dying_in_its_answer, 1, seconds=30.0)
    try:
        killed, well = workers.answers(["ill", "well"])
        assert killed.fault == "its process ended (exit code -9)"
        assert well.value == "fine"
    finally:
        workers.close()


def test_a_late_or_dead_function_is_begun_again(folder) -> None:
    reward = Own("rewards.py:late", seconds=0.5)
    reward.start(print)
    try:
        for text, said in (
            ("late", "longer than 0.5 s"),
            ("die", "exit code 7"),
            ("leave", "SystemExit: bye"),
        ):
            assert said in reward.score([Item("?", text)])[0].fault
            assert reward.score([Item("?", "fine")])[0].score == 1.0
    finally:
        reward.close()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("reward.py:few", "did you mean 'rewards.py'"),
        ("rewards.py:fwe", "no function fwe; did you mean 'few'"),
        ("rewards.py:NUMBER", "no function NUMBER"),
        ("rewards.py", "write module:function"),
        ("nowhere.at.all:few", "cannot be imported: ModuleNotFoundError"),
        ("broken.py:f", "cannot be imported: ZeroDivisionError"),
        ("leaves.py:f", "cannot be imported: SystemExit"),
    ],
)
def test_a_function_that_is_not_there_is_one_error_before_training(folder, function, said) -> None:
    (folder / "broken.py").write_text("1 / 0")
    (folder / "leaves.py").write_text("raise SystemExit(0)")
    with pytest.raises(InputError, match=said):
        scored(function)


def _slow():
    def work(task: float) -> float:
        time.sleep(task)
        return task

    return work


def _family():
    def work(task: str) -> int:
        child = os.fork()
        if not child:
            time.sleep(60)
        if task == "late":
            time.sleep(60)
        return child

    return work


def test_answers_come_in_the_order_of_the_tasks_and_side_by_side() -> None:
    workers: Workers[float] = Workers(_slow, 2, 5.0)
    workers.start()
    try:
        begun = time.monotonic()
        found = workers.answers([0.3, 0.0, 0.3, 0.0])
        assert [each.value for each in found] == [0.3, 0.0, 0.3, 0.0]
        assert time.monotonic() - begun < 0.58
    finally:
        workers.close()


def test_what_a_worker_began_ends_with_it() -> None:
    workers: Workers[str] = Workers(_family, 1, 1.0)
    workers.start()
    child = workers.answers(["early"])[0].value
    assert workers.answers(["late"])[0].fault
    deadline = time.monotonic() + 5
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers.close()
    assert not _is_alive(child)


_LEAVES = """
import sys
sys.path.insert(0, sys.argv[1])
from test_rewards_own import _slow
from fourstage.rewards.workers import Workers
if __name__ == "__main__":
    workers = Workers(_slow, 2, 5.0)
    workers.start()
    print(*[worker._process.pid for worker in workers._team], flush=True)
    if sys.argv[2] == "killed":
        import time; time.sleep(60)
    raise RuntimeError("never closed")
"""


@pytest.mark.parametrize("how", ["leaves", "killed"])
def test_workers_end_with_whoever_began_them(how, tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_LEAVES)
    parent = subprocess.Popen(
        [sys.executable, str(script), os.path.dirname(__file__), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    if how == "killed":
        parent.kill()
    parent.wait(timeout=20)
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
