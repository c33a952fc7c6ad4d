"""A piece of work in a thread of its own, whose error is told by who started it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """One job at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None], name: str) -> None:
        """Begins a job when the one before is done; does it at once where no thread can be made.

        Raises:
            Exception: what the job before ended with, or this one without a thread.
        """
        self.wait()
        thread = threading.Thread(target=self._run, args=(job,), name=name)
        try:
            thread.start()
        except RuntimeError:  # there is no memory for a stack of its own
            job()
        else:
            self._thread = thread

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # told by check() or wait(), where it is seen
            self._error = error

    def check(self) -> None:
        """Raises what a job has ended with, if it has."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits for the job, if there is one, and raises what it ended with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
