"""A service on the network as a reward: batches are posted as JSON, numbers come back.

    POST URL  {"items": [{"prompt", "response", "ended", "tokens", "ground_truth", "columns"}, ...]}
    200       {"rewards": [0.5, null, ...]}

null says nothing of an item. At the start an empty batch is posted, to which the answer is
`{"rewards": []}`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fourstage.errors import InputError
from fourstage.posting import Failed, Poster, bearer, check_key
from fourstage.rewards.contracts import Item, Outcome, Reward, outcome


class Service(Reward):
    """A reward that a service gives.

    Args:
        url: http or https; proxies of the environment are not used, and redirects not followed.
        batch: items of one request. workers: requests at a time.
        seconds, retries, backoff, most_bytes: see `Poster`.
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
        self.url, self.batch, self.workers, self.token_env = url, batch, workers, token_env
        self._poster = Poster(url, seconds, retries, backoff, most_bytes)

    def start(self, say: Callable[[str], None]) -> None:
        check_key("token_env", self.token_env)
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
        """The service's numbers.

        Raises:
            Failed: there are none.
        """
        told, read = [_told(item) for item in items], functools.partial(_rewards, count=len(items))
        return self._poster.post({"items": told}, read, bearer(self.token_env))


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
