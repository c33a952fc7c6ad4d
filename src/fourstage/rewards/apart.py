"""A reward that judges each item in a process apart, with a limit of time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from fourstage.rewards.contracts import EachAlone, Item, Outcome, Reward
from fourstage.rewards.workers import Workers


class Apart(Reward):
    """Another reward in `workers` processes: one response may take `seconds`, or it is a fault."""

    def __init__(self, reward: EachAlone, seconds: float, workers: int):
        self.reward = reward
        self._workers: Workers[Item] = Workers(functools.partial(_made, reward), workers, seconds)

    def start(self, say: Callable[[str], None]) -> None:
        self.reward.start(say)
        self._workers.start()

    def unfit(self, item: Item) -> str:
        return self.reward.unfit(item)

    def advice(self, items: Sequence[Item]) -> str:
        return self.reward.advice(items)

    def score(self, items: Sequence[Item]) -> list[Outcome]:
        answers = self._workers.answers(items)
        return [each.value if not each.fault else Outcome(fault=each.fault) for each in answers]

    def close(self) -> None:
        self._workers.close()


def _made(reward: EachAlone) -> Callable[[Item], Outcome]:
    """Called in the process: what is imported late is imported here, once."""
    reward.start(lambda line: None)
    return functools.partial(_only, reward)


def _only(reward: EachAlone, item: Item) -> Outcome:
    return reward.score([item])[0]
