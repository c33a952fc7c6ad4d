"""A number to guess, with higher and lower: the smallest task in which the second turn needs the
first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fourstage.environments.contracts import Environment
from fourstage.errors import InputError
from fourstage.randomness import python_random

_NUMBER = re.compile(r"\d{1,9}")


class Guess(Environment):
    """A reward of 1 for the number, 0 for all else; halving finds it in log2(highest) + 1 turns.

    Args:
        highest: numbers go from 1 to this.
    """

    def __init__(self, highest: int = 8):
        if highest < 2:
            raise InputError(f"options.highest={highest} leaves nothing to guess: write 2 or more")
        self.highest = highest
        self.secret = 0

    def reset(self, task: Mapping[str, Any], seed: int) -> str:
        self.secret = python_random(seed, "guess").randint(1, self.highest)
        return f"guess my number from 1 to {self.highest}"

    def step(self, response: str) -> tuple[str, float, bool]:
        found = _NUMBER.search(response)
        if found is None:
            return f"say a number from 1 to {self.highest}", 0.0, False
        number = int(found[0])
        if number == self.secret:
            return "right", 1.0, True
        return ("higher" if number < self.secret else "lower"), 0.0, False
