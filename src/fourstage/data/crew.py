"""Processes that work on tasks side by side and answer in the order of the tasks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Answer = TypeVar("Answer")

# Tasks handed out before the first of them is answered, a worker: they wait in memory.
_AHEAD = 2
_work: Callable[[Any], Any] | None = None


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
        """The answer of each task; at most a few tasks a worker are held at a time."""
        if self.workers <= 1:
            work = self.make()
            yield from (work(task) for task in tasks)
            return
        with _single_threaded():
            pool = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(self.make, os.getpid()),
            )
        try:
            waiting: deque[Future[Answer]] = deque()
            for task in tasks:
                waiting.append(pool.submit(_answer, task))
                if len(waiting) > _AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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


def _begin(make: Callable[[], Callable[[Any], Any]], parent: int) -> None:
    global _work
    # The parent decides when to stop; a worker whose parent was killed ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _work = make()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _answer(task: Any) -> Any:
    assert _work is not None, "a worker begins before it answers"
    return _work(task)
