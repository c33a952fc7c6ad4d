"""A service on the network as a reward: batches are posted as JSON, numbers come back.

    POST URL  {"items": [{"prompt", "response", "ended", "tokens", "ground_truth", "columns"}, ...]}
    200       {"rewards": [0.5, null, ...]}

null says nothing of an item. At the start an empty batch is posted, to which the answer is
`{"rewards": []}`.
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
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult, urlsplit

from fourstage.errors import InputError
from fourstage.rewards.contracts import Item, Outcome, Reward, outcome

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


class Service(Reward):
    """A reward that a service gives.

    Args:
        url: http or https; proxies of the environment are not used, and redirects not followed.
        batch: items of one request. workers: requests at a time.
        seconds: that a request may take, from connecting to the last byte.
        retries: how often a request that failed in passing is made again.
        backoff: seconds before the first of them, twice as many before each next.
        most_bytes: of an answer.
        token_env: the environment variable of a bearer token, which so stands in no recipe.
    """

    def __init__(
        self,
        url: str,
        batch: int = 64,
        workers: int = 4,
        seconds: float = 30.0,
        retries: int = 3,
        backoff: float = 0.5,
        most_bytes: int = 10_000_000,
        token_env: str | None = None,
    ):
        self.url, self.batch, self.workers = url, batch, workers
        self.seconds, self.retries, self.backoff = seconds, retries, backoff
        self.most_bytes, self.token_env = most_bytes, token_env

    def start(self, say: Callable[[str], None]) -> None:
        if self.token_env is not None and not os.environ.get(self.token_env):
            raise InputError(f"token_env={self.token_env}: there is no such environment variable")
        say(f"rl.rewards posts prompts and responses to {self.url}, as the recipe says")
        try:
            self._asked([])
        except Failed as error:
            raise InputError(
                f"{self.url} does not answer an empty batch as it should: {error} (what a service "
                "has to answer stands in docs/rewards.md)"
            ) from error

    def score(self, items: Sequence[Item]) -> list[Outcome]:
        starts = range(0, len(items), self.batch)
        batches = [items[start : start + self.batch] for start in starts]
        with ThreadPoolExecutor(self.workers) as pool:
            found = list(pool.map(self._outcomes, batches))
        return [each for batch in found for each in batch]

    def _outcomes(self, items: Sequence[Item]) -> list[Outcome]:
        try:
            return [outcome(value) for value in self._asked(items)]
        except Failed as error:
            return [Outcome(fault=str(error))] * len(items)

    def _asked(self, items: Sequence[Item]) -> list[Any]:
        """The service's numbers; asks again while there is hope.

        Raises:
            Failed: there was none.
        """
        for retry in range(self.retries + 1):
            if retry:
                time.sleep(self.backoff * 2 ** (retry - 1))
            try:
                return self._once(items)
            except Failed as error:
                if not error.passing or retry == self.retries:
                    raise
        raise AssertionError("the last retry returns or raises")

    def _once(self, items: Sequence[Item]) -> list[Any]:
        try:
            body = json.dumps({"items": [_told(item) for item in items]}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Failed(f"the rows are no JSON: {error}", passing=False) from error
        try:
            status, said = self._post(body.encode())
        except TimeoutError as error:
            raise Failed(f"no answer within {self.seconds:g} s", passing=True) from error
        except (OSError, http.client.HTTPException) as error:
            # A certificate that is not good will not get better.
            passing = not isinstance(error, ssl.SSLError)
            raise Failed(f"{type(error).__name__}: {error}", passing) from error
        if status != 200:
            told = said[:_SHOWN].decode("utf-8", "replace")
            raise Failed(f"it answered with status {status}: {told!r}", status in _AGAIN)
        return _rewards(said, len(items))

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


def _told(item: Item) -> dict[str, Any]:
    return {
        "prompt": item.prompt,
        "response": item.response,
        "ended": item.ended,
        "tokens": item.tokens,
        "ground_truth": item.truth,
        "columns": dict(item.columns),
    }


def _rewards(said: bytes, count: int) -> list[Any]:
    """The list of an answer.

    Raises:
        Failed: it is no such answer, or of another length.
    """
    try:
        answer = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise Failed(f"its answer is no JSON: {error}", passing=False) from error
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(rewards, list):
        raise Failed('its answer has no list "rewards"', passing=False)
    if len(rewards) != count:
        raise Failed(f"it answered {len(rewards)} rewards for {count} items", passing=False)
    return rewards
