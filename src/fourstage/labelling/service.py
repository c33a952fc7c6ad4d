"""Questions to an OpenAI-compatible server."""

from __future__ import annotations

import ipaddress
import json
import os
import threading
from dataclasses import dataclass, field
from typing import Any

from fourstage.errors import InputError
from fourstage.posting import Failed, Poster, address, bearer

_MOST_BYTES = 4_000_000
_SHOWN = 200


@dataclass(frozen=True)
class ChatService:
    """An OpenAI-compatible server's chat completions.

    Args:
        url: up to and with the version, such as http://127.0.0.1:8000/v1.
        model: as the server calls it.
        key_env: the environment variable that holds the key; None sends none.
        seconds, retries, backoff, stopped: see `Poster`.

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
        where = address(self.url)
        if where is None:
            raise InputError(
                f"--judge {self.url!r}: write http(s)://HOST[:PORT]/v1, without a name or a key "
                "in it"
            )
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
        poster = Poster(
            self.endpoint, self.seconds, self.retries, self.backoff, _MOST_BYTES, self.stopped
        )
        return poster.post(asked, _content, bearer(self.key_env))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
