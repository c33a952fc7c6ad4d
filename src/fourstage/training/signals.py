"""SIGTERM and Ctrl-C as a request to stop at the next step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_WATCHED = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While it is entered, the first signal is kept for the loop; a second one stops at once.

    One that the loop has not acted on when it ends is given to whoever watched before.

    Attributes:
        name: name of the signal that came, empty while none has.
    """

    def __init__(self) -> None:
        self.name = ""
        self._number = 0
        self._before: dict[int, Any] = {}

    @property
    def came(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> StopRequest:
        # Python allows handlers in the main thread only; elsewhere signals stay the caller's.
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, fault: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self.came and fault is None:
            signal.raise_signal(self._number)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self._number = number
        self.name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
