"""Processes that answer with a limit of time: one that is late is killed and begun again.

For work that may hang where no signal reaches it: a regular expression, an algebra system, a
person's own function. Unlike `data.crew` a process that dies costs its task, not the run.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from fourstage.errors import InputError

Task = TypeVar("Task")
_LONGEST_REASON = 500


@dataclass(frozen=True)
class Answer:
    """What came of a task: a value, or why there is none."""

    value: Any = None
    fault: str = ""


class Workers(Generic[Task]):
    """Several processes that each answer a task at a time.

    Args:
        make: makes what answers a task; called once in each process, so it must be picklable.
        count: processes.
        seconds: that a task may take.
        start_seconds: that a process may take until it is ready for the first.
    """

    def __init__(
        self,
        make: Callable[[], Callable[[Task], Any]],
        count: int,
        seconds: float,
        start_seconds: float = 120.0,
    ):
        self.make, self.count = make, count
        self.seconds, self.start_seconds = seconds, start_seconds
        self._team: list[_Worker] = []

    def start(self) -> None:
        """Starts all processes and waits until they are ready.

        Raises:
            InputError: one of them could not get ready, and why.
        """
        while len(self._team) < self.count:
            self._team.append(_Worker(self.make))
        deadline = time.monotonic() + self.start_seconds
        for worker in self._team:
            if fault := worker.ready(deadline):
                self.close()
                raise InputError(fault)

    def answers(self, tasks: Sequence[Task]) -> list[Answer]:
        """An answer to each task, in their order; which process gives it makes no difference.

        Raises:
            Exception: a task cannot be sent, or a process not be started.
        """
        while len(self._team) < self.count:
            self._team.append(_Worker(self.make))
        try:
            return self._answers(tasks)
        except BaseException:
            # What they still have to say answers nothing that is asked later.
            for worker in self._team:
                if worker.number is not None:
                    worker.end()
            raise

    def _answers(self, tasks: Sequence[Task]) -> list[Answer]:
        found = [Answer()] * len(tasks)
        waiting = deque(enumerate(tasks))
        while True:
            for place, worker in enumerate(self._team):
                if worker.number is None and waiting:
                    number, task = waiting.popleft()
                    fault = self._give(place, number, task)
                    if fault:
                        found[number] = Answer(fault=fault)
            if not any(worker.number is not None for worker in self._team):
                if waiting:
                    continue
                return found
            for number, answer in self._collect():
                found[number] = answer

    def _give(self, place: int, number: int, task: Task) -> str:
        """Gives a task to a process, begun again where it is gone; why it could not."""
        if not self._team[place].is_alive:
            self._team[place].end()
            self._team[place] = _Worker(self.make)
        worker = self._team[place]
        if fault := worker.ready(time.monotonic() + self.start_seconds):
            worker.end()
            return fault
        worker.give(number, task, time.monotonic() + self.seconds)
        return ""

    def _collect(self) -> list[tuple[int, Answer]]:
        """Waits for the next answer or the next deadline."""
        busy = [worker for worker in self._team if worker.number is not None]
        nearest = min(worker.deadline for worker in busy) - time.monotonic()
        spoken = set(wait([worker.pipe for worker in busy], max(0.0, nearest)))
        found: list[tuple[int, Answer]] = []
        for worker in busy:
            assert worker.number is not None
            if worker.pipe in spoken:
                found.append((worker.number, worker.take()))
            elif time.monotonic() >= worker.deadline:
                found.append((worker.number, Answer(fault=f"took longer than {self.seconds:g} s")))
                worker.end()
        return found

    def close(self) -> None:
        for worker in self._team:
            worker.end()
        self._team.clear()


class _Worker:
    """A process at the other end of a pipe, with a session of its own.

    Attributes:
        number: of the task it has; None where it has none.
        deadline: when that must be answered.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]]):
        self.number: int | None = None
        self.deadline = 0.0
        self.is_alive = True
        self._is_ready = False
        self.pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(make, other), daemon=False)
        self._process.start()
        other.close()
        # Whoever ends without closing would wait for it for ever.
        atexit.register(self.end)

    def ready(self, deadline: float) -> str:
        """Waits until it is ready for tasks; why it is not."""
        if self._is_ready:
            return ""
        if not self.pipe.poll(max(0.0, deadline - time.monotonic())):
            return "its process was not ready in time"
        answer = self.take()
        self._is_ready = not answer.fault
        return answer.fault

    def give(self, number: int, task: Any, deadline: float) -> None:
        self.number, self.deadline = number, deadline
        # A process that is gone is noticed when its answer is asked for.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(task)

    def take(self) -> Answer:
        self.number = None
        try:
            value, fault = self.pipe.recv()
        except (EOFError, OSError):
            # Perhaps in the midst of an answer.
            self.end()
            return Answer(fault=f"its process ended (exit code {self._process.exitcode})")
        return Answer(value, fault)

    def end(self) -> None:
        """Kills the process and whatever it began."""
        if not self.is_alive:
            return
        self.is_alive, self.number = False, None
        atexit.unregister(self.end)
        self.pipe.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Its own session, once it has come so far.
            if self._process.pid and os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _serve(make: Callable[[], Callable[[Any], Any]], pipe: Connection) -> None:
    """Answers what comes through the pipe until it is closed, or its other end is gone."""
    # The parent decides when to stop; what this process begins is killed with it.
    os.setsid()
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, tasks), daemon=True).start()
    work, fault = _guarded(make)
    pipe.send((None, fault))
    while not fault:
        value, problem = _guarded(lambda: work(tasks.get()))
        pipe.send((value, problem))


def _guarded(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call gives, or what it raised: told where the answer is waited for."""
    try:
        return call(), ""
    except InputError as error:
        return None, str(error)
    except BaseException as error:
        return None, f"{type(error).__name__}: {error}"[:_LONGEST_REASON]


def _receive(pipe: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    """Notices at once when the other end is gone, whatever the work is doing."""
    while True:
        try:
            tasks.put(pipe.recv())
        except (EOFError, OSError):
            os.killpg(0, signal.SIGKILL)
