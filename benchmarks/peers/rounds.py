"""Contenders that take turns, each in processes of its own, and what their turns say.

A process keeps its threads, its compiled code and its settings to itself, and waits without
working while another has its turn. Every round gives each contender one turn, in rotated order:
what else the machine does takes from all alike, and ratios are taken within a round.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from fourstage.evaluation.estimates import RESAMPLES, Estimate
from fourstage.randomness import numpy_generator


class Gate:
    """A contender's side: it says what it has done after every step, and waits between turns."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self._left = 0
        self._work: dict[str, float] = {}
        self._started = 0.0
        self.synchronise: Callable[[], object] = lambda: None

    def enter(self, facts: Mapping[str, Any]) -> bool:
        """Tells what the contender is, and waits for its first turn."""
        self._pipe.send(("ready", dict(facts)))
        return self._next_turn()

    def passed(self, **work: float) -> bool:
        """Counts a step and its work; False when there are no more turns."""
        for name, amount in work.items():
            self._work[name] = self._work.get(name, 0.0) + amount
        self._left -= 1
        if self._left:
            return True
        self.synchronise()
        self._pipe.send(("done", time.perf_counter() - self._started, self._work))
        return self._next_turn()

    def leave(self, facts: Mapping[str, Any]) -> None:
        """Tells what came of it, after the last turn."""
        self._pipe.send(("left", dict(facts)))

    def _next_turn(self) -> bool:
        self._work, self._left = {}, self._pipe.recv()
        self._started = time.perf_counter()
        return self._left > 0


# Builds a contender and takes its turns at the gate; module-level, with a picklable argument.
Play = Callable[[Gate, Any], None]


@dataclass(frozen=True)
class Contender:
    """What is started for a contender: `processes` of them, told of one another as by torchrun."""

    play: Play
    job: Any
    processes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Record:
    """What was measured of a contender.

    Attributes:
        facts: what it said of itself at the start and at the end.
        seconds: of each round.
        work: of each round, what it counted ("tokens" and others).
        warm_up: seconds of the turn before the first round, compilation included.
    """

    facts: dict[str, Any]
    seconds: list[float]
    work: list[dict[str, float]]
    warm_up: float

    def rates(self, name: str = "tokens") -> list[float]:
        """Work a second of each round."""
        pairs = zip(self.work, self.seconds, strict=True)
        return [work[name] / seconds for work, seconds in pairs]


class Failed(Exception):
    """A contender could not be started or stopped on the way."""


def _serve(pipe: Connection, contender: Contender) -> None:
    try:
        contender.play(Gate(pipe), contender.job)
    except BaseException as error:
        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {str(error)[:500]}"))
        raise SystemExit(1) from error


class _Processes:
    """The running processes of one contender."""

    def __init__(self, contender: Contender):
        spawn, port = multiprocessing.get_context("spawn"), _free_port()
        self.processes, self.pipes = [], []
        for rank in range(contender.processes):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, contender), daemon=True)
            told = dict(contender.environment)
            if contender.processes > 1:
                told |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
                told |= {"WORLD_SIZE": str(contender.processes), "MASTER_ADDR": "127.0.0.1"}
            with _environment(told):
                process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def answers(self, kind: str) -> list[tuple]:
        """What every process answers next.

        Raises:
            Failed: one of them failed, or is gone.
        """
        found = []
        for pipe in self.pipes:
            try:
                answer = pipe.recv()
            except EOFError:
                raise Failed("its process ended without a word") from None
            if answer[0] != kind:
                raise Failed(answer[1] if answer[0] == "failed" else f"it answered {answer[0]}")
            found.append(answer[1:])
        return found

    def turn(self, steps: int) -> tuple[float, dict[str, float]]:
        """Seconds of the slowest process, and what the first one counted."""
        for pipe in self.pipes:
            pipe.send(steps)
        answers = self.answers("done")
        return max(seconds for seconds, _ in answers), answers[0][1]

    def close(self) -> dict[str, Any]:
        for pipe in self.pipes:
            pipe.send(0)
        facts = self.answers("left")[0][0]
        for process in self.processes:
            process.join(30)
        return facts

    def end(self) -> None:
        for process in self.processes:
            process.terminate()


class _environment:
    """Variables that hold while processes start."""

    def __init__(self, told: Mapping[str, str]):
        self._told = told

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._told}
        os.environ.update(self._told)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def take_turns(
    contenders: Mapping[str, Contender],
    rounds: int,
    steps: int,
    *,
    warm_up: int = 3,
    needed: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Record], dict[str, str]]:
    """Every contender's record, and why those without one have none.

    Args:
        steps: of a turn. warm_up: steps of each before the first round, not counted.
        needed: contenders without which there is nothing to compare.

    Raises:
        SystemExit: a needed one failed.
    """
    running: dict[str, _Processes] = {}
    records: dict[str, Record] = {}
    absent: dict[str, str] = {}

    def attempt(name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (Failed, BrokenPipeError, ConnectionResetError) as error:
            absent[name] = str(error)
            if name in needed:
                raise SystemExit(f"{name} failed: {error}") from error
            say(f"{name} is left out: {error}")
            running.pop(name).end()
            records.pop(name, None)
            return None

    def start(name: str) -> Record:
        (facts,) = running[name].answers("ready")[0]
        seconds, _ = running[name].turn(warm_up)
        say(f"{name}: warmed up in {seconds:.1f} s")
        return Record(facts, [], [], seconds)

    try:
        for name, contender in contenders.items():
            running[name] = _Processes(contender)
            record = attempt(name, lambda name=name: start(name))
            if record is not None:
                records[name] = record
        for number in range(rounds):
            for name in rotated(list(running), number):
                turn = attempt(name, lambda name=name: running[name].turn(steps))
                if turn is not None:
                    records[name].seconds.append(turn[0])
                    records[name].work.append(turn[1])
            say(f"round {number + 1} of {rounds}")
        for name in list(running):
            facts = attempt(name, lambda name=name: running[name].close())
            if facts is not None:
                records[name].facts |= facts
    finally:
        for processes in running.values():
            processes.end()
    return records, absent


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each is first in turn, and every second round runs backwards."""
    start = number % max(1, len(names))
    order = [*names[start:], *names[:start]]
    return order if number % 2 == 0 else order[::-1]


def median_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """The median of rounds and the 95% percentile interval of its bootstrap (Efron, 1979)."""
    found = np.asarray(values, np.float64)
    generator = numpy_generator(seed, "bootstrap", "median", len(found))
    drawn = np.median(found[generator.integers(0, len(found), (RESAMPLES, len(found)))], axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(float(np.median(found)), float(low), float(high))


def ratio_of_rounds(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Median over rounds of our rate over theirs."""
    return median_of([own / other for own, other in zip(ours, theirs, strict=True)])
