"""One request to an OpenAI-compatible server: with a deadline, a limit, and again where it helps.

Proxies of the environment are not used, and redirects are not followed: what is sent goes to the
address that was written, and so does the key.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from fourstage.errors import InputError

# Answers that may be others a little later.
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# Answers that say that the address, the key or the model is wrong, not the pair.
_ENDS = (401, 402, 403, 404, 405)
_MOST_BYTES = 4_000_000
_LONGEST_WAIT = 60.0
_SHOWN = 200


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


@dataclass(frozen=True)
class ChatService:
    """An OpenAI-compatible server's chat completions.

    Args:
        url: up to and with the version, such as http://127.0.0.1:8000/v1.
        model: as the server calls it.
        key_env: the environment variable that holds the key; None sends none.
        seconds: that a request may take, from connecting to the last byte.
        retries: how often a request that failed in passing is made again.
        backoff: seconds before the first of them, twice as many before each next.
        stopped: set where nobody waits for an answer any more.

    Raises:
        InputError: no such address or variable, or a key that would travel unencrypted.
    """

    url: str
    model: str
    key_env: str | None = None
    seconds: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    stopped: threading.Event = field(default_factory=threading.Event, compare=False)

    def __post_init__(self) -> None:
        where = _where(self.url)
        if self.key_env is None:
            return
        if not os.environ.get(self.key_env):
            raise InputError(
                f"--judge-key-env {self.key_env}: there is no such environment variable; write its "
                f"name here, and the key in it: export {self.key_env}=..."
            )
        if where.scheme == "http" and not _is_loopback(where.hostname or ""):
            raise InputError(
                f"--judge {self.url}: a key over http can be read on its way: write https, or "
                "leave --judge-key-env out"
            )

    @property
    def endpoint(self) -> str:
        return self.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    def answer(self, messages: list[dict[str, str]], most_tokens: int) -> str:
        """What the model says to `messages`, greedy; asks again while there is hope.

        Raises:
            Failed: there was none.
        """
        asked = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": most_tokens,
        }
        body = json.dumps(asked).encode()
        for retry in range(self.retries + 1):
            try:
                return self._once(body)
            except Failed as error:
                if not error.passing or retry == self.retries:
                    raise
                wait = self.backoff * 2**retry if error.wait is None else error.wait
                if self.stopped.wait(min(wait, _LONGEST_WAIT)):
                    raise
        raise AssertionError("the last retry returns or raises")

    def _once(self, body: bytes) -> str:
        deadline = time.monotonic() + self.seconds
        try:
            status, wait, said = self._post(body)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise Failed(f"no answer within {self.seconds:g} s", passing=True) from error
            # A certificate that is not good will not get better.
            ends = isinstance(error, ssl.SSLError)
            raise Failed(f"{type(error).__name__}: {error}", not ends, ends) from error
        if len(said) > _MOST_BYTES:
            raise Failed(f"an answer of more than {_MOST_BYTES:,} bytes", passing=False)
        if status != 200:
            told = said[:_SHOWN].decode("utf-8", "replace")
            ends = status < 400 or status in _ENDS
            raise Failed(f"status {status}: {told!r}", status in _AGAIN, ends, wait)
        return _content(said)

    def _post(self, body: bytes) -> tuple[int, float | None, bytes]:
        """Status, seconds to wait, and the answer, of which at most a byte too much is read."""
        where = _where(self.endpoint)
        connection = _connection(where, self.seconds)
        try:
            connection.connect()
            with _cut_off(connection.sock, self.seconds):
                path = (where.path or "/") + (f"?{where.query}" if where.query else "")
                connection.request("POST", path, body, self._headers())
                answer = connection.getresponse()
                wait = _seconds(answer.getheader("Retry-After"))
                return answer.status, wait, answer.read(_MOST_BYTES + 1)
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "fourstage"}
        if self.key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        return headers


def _where(url: str) -> SplitResult:
    """Raises `InputError` for what is no address of a server."""
    with contextlib.suppress(ValueError):
        where = urlsplit(url)
        is_address = where.scheme in ("http", "https") and where.hostname and where.port != 0
        if is_address and where.username is None and url.isascii() and url.isprintable():
            return where
    raise InputError(
        f"--judge {url!r}: write http(s)://HOST[:PORT]/v1, without a name or a key in it"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connection(where: SplitResult, seconds: float) -> http.client.HTTPConnection:
    host = where.hostname or ""
    if where.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, where.port, timeout=seconds, context=context)
    return http.client.HTTPConnection(host, where.port, timeout=seconds)


@contextlib.contextmanager
def _cut_off(sock: socket.socket, seconds: float) -> Generator[None]:
    """Ends what goes on over a socket after so many seconds, be it ever so lively."""

    def cut() -> None:
        # Closed meanwhile: it has ended by itself.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _seconds(value: str | None) -> float | None:
    """`Retry-After` in seconds; a date is taken for nothing said."""
    return float(value) if value is not None and value.isascii() and value.isdecimal() else None


def _content(said: bytes) -> str:
    """What the first choice of an answer says; nothing where it says nothing.

    Raises:
        Failed: it is no chat completion.
    """
    try:
        content: Any = json.loads(said)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        told = said[:_SHOWN].decode("utf-8", "replace")
        raise Failed(f"no chat completion: {told!r}", passing=True) from error
    return content if isinstance(content, str) else ""
