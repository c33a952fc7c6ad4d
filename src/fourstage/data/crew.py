"""Processes that work on tasks side by side and answer in the order of the tasks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from fourstage.errors import MachineError
from fourstage.memory import give_back

Task = TypeVar("Task")
Answer = TypeVar("Answer")

# Tasks that a worker has at a time: one at work, one to go on with.
_AHEAD = 2


class Crew(Generic[Task, Answer]):
    """Answers tasks in their order, in this process or in several.

    What comes out does not depend on how many work: a task is answered from itself alone.

    Args:
        make: makes what answers a task; called once in each process, so it must be picklable.
        workers: processes beside this one; one or none means this process.
    """

    def __init__(self, make: Callable[[], Callable[[Task], Answer]], workers: int):
        self.make, self.workers = make, workers

    def answers(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """The answer of each task; at most a few tasks a worker are held at a time.

        Raises:
            MachineError: a worker was killed. What a worker raises is raised here.
        """
        if self.workers <= 1:
            work = self.make()
            yield from (work(task) for task in tasks)
            return
        give_back()
        team = [_Worker(self.make) for _ in range(self.workers)]
        try:
            yield from _in_order(team, tasks)
        finally:
            for worker in team:
                worker.end()


def _in_order(team: list[_Worker], tasks: Iterable[Any]) -> Iterator[Any]:
    source = enumerate(tasks)
    done: dict[int, Any] = {}
    turn, is_open = 0, True
    while True:
        # Answers that wait for an earlier one are held back by giving out no more tasks.
        while is_open and len(done) < _AHEAD * len(team):
            idlest = min(team, key=lambda worker: len(worker.at_work))
            if len(idlest.at_work) >= _AHEAD:
                break
            task = next(source, None)
            is_open = task is not None
            if task is not None:
                idlest.give(*task)
        while turn in done:
            yield done.pop(turn)
            turn += 1
        busy = {worker.pipe: worker for worker in team if worker.at_work}
        if not busy:
            if is_open:
                continue
            return
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # ty: ignore[invalid-argument-type]
            number, answer = worker.take()
            done[number] = answer


class _Worker:
    """A process at the other end of a pipe.

    Attributes:
        at_work: numbers of the tasks it has, in order.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]]):
        self.at_work: list[int] = []
        self.pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(make, other), daemon=True)
        with _single_threaded():
            self._process.start()
        other.close()

    def give(self, number: int, task: Any) -> None:
        self.at_work.append(number)
        # A worker that is gone is noticed when its answer is asked for.
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(task)

    def take(self) -> tuple[int, Any]:
        """The number of its first task, and the answer.

        Raises:
            MachineError: the process is gone.
        """
        try:
            answer, fault = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            raise MachineError(
                f"a worker process ended (exit code {self._process.exitcode}), perhaps for lack "
                "of memory: run again to go on, with fewer processes by data.workers=1"
            ) from error
        if fault is not None:
            raise fault
        return self.at_work.pop(0), answer

    def end(self) -> None:
        self.pipe.close()
        self._process.terminate()
        self._process.join()


def _serve(make: Callable[[], Callable[[Any], Any]], pipe: Connection) -> None:
    """Answers what comes through the pipe until it is closed, or its other end is gone."""
    # The parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, tasks), daemon=True).start()
    work = None
    while True:
        task = tasks.get()
        try:
            work = work or make()
            said = work(task), None
        except Exception as error:
            # Whatever went wrong is raised where the answer is waited for.
            said = None, error
        pipe.send(said)


def _receive(pipe: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    """Takes tasks at once, so that whoever gives one never waits for the work to be done."""
    while True:
        try:
            tasks.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)


def workers_for(size: int, asked: int | None) -> int:
    """Processes worth starting for so many bytes: a start costs about a second.

    Args:
        size: bytes of the raw files, or of the text.
        asked: what the recipe says.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 1 + size // 8_000_000)


@contextlib.contextmanager
def _single_threaded() -> Generator[None]:
    """Processes started within use one thread each: the cores are shared by processes."""
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict(zip(names, ("1", "1", "false"), strict=True))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
