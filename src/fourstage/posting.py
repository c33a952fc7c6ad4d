"""JSON posted to a service on the network, with a limit on all that it may take."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

# Answers that may be another one a little later.
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_SHOWN = 120


class Failed(Exception):
    """An answer that did not come, or is none.

    Attributes:
        passing: whether it may come when asked again.
    """

    def __init__(self, reason: str, passing: bool):
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True)
class Address:
    """Where a service answers, and how long it is waited for.

    Attributes:
        url: http or https; proxies of the environment are not used, and redirects not followed.
        seconds: that a request may take, from connecting to the last byte.
        retries: how often a request that failed in passing is made again.
        backoff: seconds before the first of them, twice as many before each next.
        most_bytes: of an answer.
        token_env: the environment variable of a bearer token, which so stands in no recipe.
    """

    url: str
    seconds: float = 30.0
    retries: int = 3
    backoff: float = 0.5
    most_bytes: int = 10_000_000
    token_env: str | None = None

    def asked(self, body: bytes) -> bytes:
        """The answer to a posted JSON text; asks again while there is hope.

        Raises:
            Failed: there was none.
        """
        for retry in range(self.retries + 1):
            if retry:
                time.sleep(self.backoff * 2 ** (retry - 1))
            try:
                return self._once(body)
            except Failed as error:
                if not error.passing or retry == self.retries:
                    raise
        raise AssertionError("the last retry returns or raises")

    def _once(self, body: bytes) -> bytes:
        try:
            status, said = self._post(body)
        except TimeoutError as error:
            raise Failed(f"no answer within {self.seconds:g} s", passing=True) from error
        except (OSError, http.client.HTTPException) as error:
            # A certificate that is not good will not get better.
            passing = not isinstance(error, ssl.SSLError)
            raise Failed(f"{type(error).__name__}: {error}", passing) from error
        if status != 200:
            told = said[:_SHOWN].decode("utf-8", "replace")
            raise Failed(f"it answered with status {status}: {told!r}", status in _AGAIN)
        return said

    def _post(self, body: bytes) -> tuple[int, bytes]:
        """Status and answer of one request.

        Raises:
            TimeoutError: it took too long as a whole; OSError, HTTPException: it failed.
            Failed: the answer is too large.
        """
        deadline = time.monotonic() + self.seconds
        where = urlsplit(self.url)
        connection = _connection(where, self.seconds)
        try:
            connection.connect()
            with _cut_off(connection.sock, deadline):
                path = (where.path or "/") + (f"?{where.query}" if where.query else "")
                connection.request("POST", path, body, self._headers())
                answer = connection.getresponse()
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
        if len(said) > self.most_bytes:
            raise Failed(f"its answer is larger than {self.most_bytes:,} bytes", passing=False)
        return answer.status, said

    def _headers(self) -> dict[str, str]:
        token = os.environ.get(self.token_env, "") if self.token_env else ""
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        return {"Content-Type": "application/json", "Connection": "close", **bearer}


def _connection(where: SplitResult, seconds: float) -> http.client.HTTPConnection:
    if where.scheme == "https":
        return http.client.HTTPSConnection(where.netloc, timeout=seconds)
    return http.client.HTTPConnection(where.netloc, timeout=seconds)


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
