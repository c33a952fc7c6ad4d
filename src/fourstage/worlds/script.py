"""One program that both writes a text and reads it back, so that probabilities are exact.

A kind of document is a function of a `Script`: it says fixed words and makes choices. A `Writer`
draws each choice; a `Reader` recovers it from the text. Every choice shows itself at once in words
of which exactly one option fits, so a text has one derivation and

    log2 p(text) = - sum over its choices of log2 1/p(choice).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

Option = TypeVar("Option")


class Unreadable(Exception):
    """The text is not one this script could have written."""


class Script(Protocol):
    """What a document program may do."""

    def say(self, text: str) -> None:
        """Fixed words."""

    def recall(self, text: str) -> None:
        """Words that the text above determines; a model must look back (or reason) for them."""

    def choose(
        self,
        options: Sequence[Option],
        text: Callable[[Option], str] = str,
        weights: Sequence[float] | None = None,
    ) -> Option:
        """One option, uniformly or by `weights`, said at once as `text(option)`."""


class Writer:
    """Draws every choice from `rng`, keeping the text, its bits and its determined spans.

    Attributes:
        bits: `-log2` of the probability of what has been written.
        determined: character spans [start, end) of recalled words.
    """

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._parts: list[str] = []
        self._length = 0
        self.bits = 0.0
        self.determined: list[tuple[int, int]] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def say(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def recall(self, text: str) -> None:
        self.determined.append((self._length, self._length + len(text)))
        self.say(text)

    def choose(self, options, text=str, weights=None):
        if weights is None:
            index = self._rng.randrange(len(options))
            self.bits += math.log2(len(options))
        else:
            index = self._rng.choices(range(len(options)), weights)[0]
            self.bits -= math.log2(weights[index] / sum(weights))
        self.say(text(options[index]))
        return options[index]


class Reader:
    """Follows a text through a program; the same bits and spans come out, or `Unreadable`."""

    def __init__(self, text: str):
        self.text = text
        self._at = 0
        self.bits = 0.0
        self.determined: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        if not self.text.startswith(text, self._at):
            raise Unreadable(f"{text!r} was expected at character {self._at}")
        self._at += len(text)

    def recall(self, text: str) -> None:
        start = self._at
        self.say(text)
        self.determined.append((start, self._at))

    def choose(self, options, text=str, weights=None):
        fits = [i for i, o in enumerate(options) if self.text.startswith(text(o), self._at)]
        if len(fits) != 1:
            raise Unreadable(f"{len(fits)} options fit at character {self._at}")
        index = fits[0]
        share = 1 / len(options) if weights is None else weights[index] / sum(weights)
        self.bits -= math.log2(share)
        self.say(text(options[index]))
        return options[index]

    def finish(self) -> None:
        """Raises `Unreadable` when text is left over."""
        if self._at != len(self.text):
            raise Unreadable(f"nothing was expected after character {self._at}")


def without(options: Sequence[str], *used: str) -> list[str]:
    """The options that are not `used`, in order."""
    return [option for option in options if option not in used]
