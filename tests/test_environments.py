"""Environments: the shipped games, and whatever a person's own may do wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.environments.building import build, own_files
from fourstage.environments.calculator import Calculator, worked_out
from fourstage.environments.contracts import told
from fourstage.environments.guess import Guess
from fourstage.environments.hosting import Environments, Host
from fourstage.errors import InputError
from fourstage.recipe import RL
from fourstage.recipe.rollouts import EnvironmentSection
from fourstage.tasks import Task

TASK = {"prompt": "hello", "ground_truth": "7", "columns": {}}

OWN = '''
import os, time

class Game:
    """Counts what it was told; some words make it fail."""
    def __init__(self, start=0):
        self.count = start
    def reset(self, task, seed):
        if task["prompt"] == "bad reset":
            raise KeyError("nothing here")
        if task["prompt"] == "no text":
            return 3
        if task["prompt"] == "bad role":
            return [{"role": "robot", "content": "x"}]
        return f"{task['prompt']} {seed}"
    def step(self, response):
        self.count += 1
        if response == "throw":
            raise RuntimeError("broken")
        if response == "hang":
            time.sleep(600)
        if response == "die":
            os._exit(3)
        if response == "nan":
            return "x", float("nan"), False
        if response == "number":
            return 5, 1.0, False
        if response == "pair":
            return "x", 1.0
        return f"turn {self.count}", 0.5, response == "stop"
'''


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "game.py"
    path.write_text(OWN)
    return f"{path}:Game"


def section(path: str, **more: Any) -> EnvironmentSection:
    return EnvironmentSection(**({"kind": "own", "path": path, "seconds": 20} | more))


def test_halving_always_finds_the_number():
    for seed in range(40):
        game = Guess(highest=16)
        assert game.reset(TASK, seed) == "guess my number from 1 to 16"
        low, high, turns, done = 1, 16, 0, False
        while not done:
            turns += 1
            middle = (low + high) // 2
            said, reward, done = game.step(f"I say {middle}!")
            assert reward == float(said == "right") == float(done)
            low, high = (middle + 1, high) if said == "higher" else (low, middle - 1)
        assert turns <= 5


def test_a_game_is_a_function_of_its_seed():
    def secret(seed: int) -> int:
        game = Guess(highest=1000)
        game.reset(TASK, seed)
        return game.secret

    assert [secret(seed) for seed in range(5)] == [secret(seed) for seed in range(5)]
    assert len({secret(seed) for seed in range(20)}) > 10
    assert Guess().step("no number")[1:] == (0.0, False)


def test_a_calculator_answers_calls_and_checks_the_answer():
    game = Calculator()
    prompt = game.reset(TASK, 3)
    expression = prompt.split()[2].rstrip("?")
    said, reward, done = game.step(f"let me see <call>{expression}</call>")
    assert (reward, done) == (0.0, False)
    assert eval(expression) == int(said)
    assert game.step("<call>1/0</call>")[0] == "error: division by zero"
    assert game.step("<call>__import__('os')</call>")[0] == "error: no sum"
    assert game.step(f"it is {said}")[1:] == (1.0, True)
    assert game.step("it is 123456789")[1:] == (0.0, True)


def test_a_calculator_can_take_the_problems_of_the_rows():
    game = Calculator(rows=True)
    system, user = game.reset(TASK, 0)
    assert (system["role"], user) == ("system", {"role": "user", "content": "hello"})
    assert game.step("7")[1] == 1.0
    with pytest.raises(ValueError, match="is no number"):
        Calculator(rows=True).reset({**TASK, "ground_truth": None}, 0)


@given(st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({''.join(t)})"),
    max_leaves=5,
))  # fmt: skip
def test_sums_are_worked_out_as_python_has_them(expression):
    assert worked_out(expression) == eval(expression)


@pytest.mark.parametrize("text", ["9**9**9", "1e400", "(" * 150, "x+1", "1+" * 120 + "1", ""])
def test_what_is_no_sum_is_said(text):
    with pytest.raises(ValueError):
        worked_out(text)


def test_ones_own_environment_is_shown_and_plays(own):
    said: list[str] = []
    environments = build(section(own, options={"start": 10}))
    try:
        environments.start(said.append, [TASK])
        openings = environments.reset([TASK] * 3, [5, 6, 7])
        assert [each.messages for each in openings] == ["hello 5", "hello 6", "hello 7"]
        (one,) = environments.step([1], ["go"])
        assert (one.observation, one.reward, one.done) == ("turn 11", 0.5, False)
        found = environments.step([0, 1, 2], ["go", "stop", "go"])
        assert [(each.observation, each.done) for each in found] == [
            ("turn 11", False), ("turn 12", True), ("turn 11", False),
        ]  # fmt: skip
    finally:
        environments.close()
    assert len(said) == 1
    assert "Game of" in said[0]
    assert "sha256" in said[0]
    assert list(own_files(section(own))) == ["game.py"]


FAULTS = {
    "throw": "RuntimeError: broken",
    "die": "ended (exit code 3)",
    "nan": "the number is nan",
    "number": "which is no text",
    "pair": "and not (observation, reward, done)",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_costs_its_episode_alone_and_others_go_on_where_they_were(own, workers):
    environments = build(section(own, workers=workers))
    words = list(FAULTS)
    try:
        environments.reset([TASK] * 6, range(6))
        environments.step(range(6), ["go"] * 6)
        found = environments.step(range(6), ["go", *words])
        for word, each in zip(words, found[1:], strict=True):
            assert FAULTS[word] in each.fault
        assert found[0].observation == "turn 2"
        # Its process may be another by now: it was played again up to here.
        assert environments.step([0], ["go"])[0].observation == "turn 3"
    finally:
        environments.close()


def test_an_environment_that_hangs_is_killed(own):
    environments = build(section(own, seconds=3))
    try:
        environments.reset([TASK] * 2, [0, 1])
        late, fine = environments.step([0, 1], ["hang", "go"])
        assert late.fault == "took longer than 3 s"
        assert fine.observation == "turn 1"
    finally:
        environments.close()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("bad reset", "KeyError: 'nothing here'"),
        ("no text", "reset gave 3, and neither text nor messages"),
        ("bad role", "write role (one of system, user, assistant)"),
    ],
)
def test_a_beginning_that_is_none_is_said_before_training(own, prompt, words):
    environments = build(section(own))
    with pytest.raises(InputError) as error:
        environments.start(lambda line: None, [{**TASK, "prompt": prompt}])
    environments.close()
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("game.py:Gme", {}, "has no class Gme; did you mean 'Game'?"),
        ("gme.py:Game", {}, "there is no file"),
        ("game.py:Game", {"options": {"strat": 1}}, "cannot be made with these options"),
        ("game.py:Path", {}, "has no class Path"),
    ],
)
def test_a_class_that_is_not_there_is_one_line(own, tmp_path, name, more, words):
    environments = build(section(f"{tmp_path}/{name}", **more))
    with pytest.raises(InputError) as error:
        environments.start(lambda line: None, [TASK])
    environments.close()
    assert words in str(error.value) and str(error.value).startswith("rl.environment, path=")
    assert "\n" not in str(error.value)


def test_what_an_episode_holds_is_closed_however_it_ends():
    ended = []

    def make():
        def step(response):
            if response == "throw":
                raise RuntimeError
            return "", 0.0, response == "stop"

        return SimpleNamespace(reset=lambda t, s: None, step=step, close=lambda: ended.append(1))

    environments = Environments(lambda: Host(make))
    environments.reset([TASK] * 3, [0, 1, 2])
    environments.step([0, 1, 2], ["stop", "throw", "go"])
    assert len(ended) == 2
    environments.end()
    assert len(ended) == 3


def test_one_that_does_not_begin_is_closed_too():
    ended = []

    def reset(task, seed):
        raise KeyError("nothing here")

    host = Host(lambda: SimpleNamespace(reset=reset, step=None, close=lambda: ended.append(1)))
    (opening,) = Environments(lambda: host).reset([TASK], [0])
    assert "nothing here" in opening.fault and ended == [1]


def test_a_task_is_told_with_its_row():
    task = Task("add", "own", {"reference": "7", "columns": {"level": 2}})
    assert told(task) == {"prompt": "add", "ground_truth": "7", "columns": {"level": 2}}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"environment": {"kind": "guess", "options": {"higest": 3}}}, "did you mean 'highest'?"),
        ({"environment": {"kind": "guess", "options": {"highest": "x"}}}, "write a whole number"),
        ({"environment": {"kind": "guess", "options": {"highest": 1}}}, "write 2 or more"),
        ({"environment": {"kind": "guess", "workers": 2}}, "workers is of kind=own, not guess"),
        ({"environment": {"kind": "own"}}, "kind=own needs path"),
        ({"environment": {"kind": "guess", "path": "a.py:B"}}, "write kind=own"),
        ({"environment": {"kind": "own", "path": "B"}}, "such as game.py:Game"),
        ({"environment": {"kind": "guess"}, "algorithm": "raft"}, "write algorithm=grpo"),
        (
            {"environment": {"kind": "guess"}, "algorithm": "dpo", "online": True},
            "write algorithm=grpo",
        ),
        ({"environment": {"kind": "guess"}, "rewards": ["math"]}, "both give rewards"),
    ],
)
def test_what_does_not_go_together_is_refused(more, words):
    with pytest.raises(ValueError) as error:
        RL(**more)
    assert words in str(error.value)
