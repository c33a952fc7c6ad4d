"""JSON posted to a server: with a deadline for all of it, a limit, and again where that helps.

Proxies of the environment are not used, and redirects are not followed: what is sent goes to the
address that was written, and so does a key.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from fourstage.errors import InputError

Read = TypeVar("Read")
# Answers that may be others a little later.
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# Answers that say that the address, the key or the model is wrong, not what was posted.
_ENDS = (401, 402, 403, 404, 405)
# However long a server asks to wait.
_LONGEST_WAIT = 60.0
_SHOWN = 120


class Failed(Exception):
    """A request that came to nothing.

    Attributes:
        passing: whether it may do better when made again.
        ends: whether no other request would do better.
        wait: seconds that the server asks to wait, if it does.
    """

    def __init__(self, reason: str, passing: bool, ends: bool = False, wait: float | None = None):
        super().__init__(reason)
        self.passing, self.ends, self.wait = passing, ends, wait


def address(url: str) -> SplitResult | None:
    """The parts of a server's address; None of what is none, or holds a name or a password."""
    with contextlib.suppress(ValueError):
        where = urlsplit(url)
        is_address = where.scheme in ("http", "https") and where.hostname and where.port != 0
        if is_address and where.username is None and url.isascii() and url.isprintable():
            return where
    return None


def check_key(name: str, variable: str | None) -> None:
    """Raises `InputError` where an environment variable that is to hold a token holds none.

    Args:
        name: of the key of a recipe that names the variable.
    """
    if variable is None:
        return
    token = os.environ.get(variable)
    if not token:
        raise InputError(f"{name}={variable}: there is no such environment variable")
    if not token.isascii() or not token.isprintable():
        raise InputError(
            f"{name}={variable}: the variable holds a line break or a letter that no token has"
        )


def bearer(variable: str | None) -> dict[str, str]:
    """The header of a token that an environment variable holds, which so stands in no recipe."""
    token = os.environ.get(variable, "") if variable else ""
    return {"Authorization": f"Bearer {token}"} if token else {}


@dataclass(frozen=True)
class Poster:
    """Posts to one address, an `address`.

    Args:
        seconds: that a request may take, from connecting to the last byte.
        retries: how often a request that failed in passing is made again.
        backoff: seconds before the first of them, twice as many before each next.
        most_bytes: of an answer.
        stopped: set where nobody waits for an answer any more.
    """

    url: str
    seconds: float = 30.0
    retries: int = 3
    backoff: float = 0.5
    most_bytes: int = 10_000_000
    stopped: threading.Event = field(default_factory=threading.Event, compare=False)

    def post(
        self, content: Any, read: Callable[[bytes], Read], headers: Mapping[str, str] = {}
    ) -> Read:
        """What `read` makes of the answer; asks again while there is hope.

        Args:
            read: raises `Failed` of an answer that is none.

        Raises:
            Failed: there was no hope.
        """
        try:
            body = json.dumps(content, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise Failed(f"what is posted is no JSON: {error}", passing=False) from error
        for retry in range(self.retries + 1):
            try:
                return read(self._once(body, headers))
            except Failed as error:
                if not error.passing or retry == self.retries:
                    raise
                wait = self.backoff * 2**retry if error.wait is None else error.wait
                if self.stopped.wait(min(wait, _LONGEST_WAIT)):
                    raise
        raise AssertionError("the last retry returns or raises")

    def _once(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        deadline = time.monotonic() + self.seconds
        try:
            status, wait, said = self._sent(body, headers, deadline)
        except TimeoutError as error:
            raise Failed(f"no answer within {self.seconds:g} s", passing=True) from error
        except (OSError, http.client.HTTPException) as error:
            # A certificate that is not good will not get better.
            ends = isinstance(error, ssl.SSLError)
            raise Failed(f"{type(error).__name__}: {error}", not ends, ends) from error
        if len(said) > self.most_bytes:
            reason = f"its answer is larger than {self.most_bytes:,} bytes"
            raise Failed(reason, passing=False)
        if status != 200:
            told = said[:_SHOWN].decode("utf-8", "replace")
            ends = status < 400 or status in _ENDS
            raise Failed(f"status {status}: {told!r}", status in _AGAIN, ends, wait)
        return said

    def _sent(
        self, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> tuple[int, float | None, bytes]:
        """Status, seconds to wait, and the answer, of which at most a byte too much is read.

        Raises:
            TimeoutError: it took too long as a whole; OSError, HTTPException: it failed.
        """
        where = urlsplit(self.url)
        connection = _connection(where, self.seconds)
        try:
            connection.connect()
            with _cut_off(connection.sock, deadline):
                path = (where.path or "/") + (f"?{where.query}" if where.query else "")
                connection.request("POST", path, body, _HEADERS | dict(headers))
                answer = connection.getresponse()
                wait = _seconds(answer.getheader("Retry-After"))
                said = answer.read(self.most_bytes + 1)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise TimeoutError from error
            raise
        finally:
            connection.close()
        if time.monotonic() >= deadline:
            # What was cut off can look whole.
            raise TimeoutError
        return answer.status, wait, said


_HEADERS = {
    "Content-Type": "application/json",
    "Connection": "close",
    "User-Agent": "fourstage",
}


def _connection(where: SplitResult, seconds: float) -> http.client.HTTPConnection:
    host = where.hostname or ""
    if where.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, where.port, timeout=seconds, context=context)
    return http.client.HTTPConnection(host, where.port, timeout=seconds)


@contextlib.contextmanager
def _cut_off(connected: socket.socket, deadline: float) -> Generator[None]:
    """Cuts a connection at the deadline: a limit of each read would let an answer trickle on."""
    # Of the bare socket: of an encrypted one the method of that name disturbs who reads.
    cut = functools.partial(socket.socket.shutdown, connected, socket.SHUT_RDWR)
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _quietly, [cut])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _quietly(call: Callable[[], None]) -> None:
    # It may have been closed in the same moment.
    with contextlib.suppress(OSError):
        call()


def _seconds(value: str | None) -> float | None:
    """`Retry-After` in seconds; a date is taken for nothing said."""
    return float(value) if value is not None and value.isascii() and value.isdecimal() else None
