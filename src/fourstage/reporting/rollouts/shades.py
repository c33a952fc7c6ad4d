"""How strongly a token is coloured by one of its numbers, and by which side of zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fourstage.errors import InputError, nearest
from fourstage.reporting.numbers import MINUS
from fourstage.reporting.rollouts.episodes import Episode

COLOURINGS = ("advantage", "KL", "reward", "value", "ratio")
# Of the largest value: from where a token is coloured at all, and from where strongly.
MILD, STRONG = 1 / 8, 1 / 2
# Share of all tokens whose value is at most "the largest", so that one token pales no other.
_QUANTILE = 0.98
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Shading:
    """A quantity to colour by, on one scale for all episodes of a rollout.

    Attributes:
        limit: the distance from zero at which the colour is full. Of a ratio it is that of its log.
    """

    name: str
    limit: float

    def strength(self, value: float) -> float:
        """From -1 to 1: how far from zero, by the limit."""
        return max(-1.0, min(1.0, value / self.limit))

    def level(self, value: float) -> int:
        """-2, -1, 0, 1 or 2."""
        strength = self.strength(value)
        size = (abs(strength) >= MILD) + (abs(strength) >= STRONG)
        return size if strength > 0 else -size

    def values(self, episode: Episode) -> Tensor:
        """[response tokens] what the colour is of."""
        column = episode.columns[self.name]
        return column.log() if self.name == "ratio" else column

    def bound(self, share: float) -> str:
        """A distance from zero in the quantity's own unit: `0.25`, of a ratio `x 1.28`."""
        if self.name == "ratio":
            return f"×{torch.tensor(share * self.limit).exp().item():.3g}"
        return f"{share * self.limit:.2g}"

    def below(self, share: float) -> str:
        """As `bound`, on the other side of zero."""
        if self.name == "ratio":
            return f"×{torch.tensor(-share * self.limit).exp().item():.3g}"
        return f"{MINUS}{self.bound(share)}"


def shadings(episodes: Iterable[Episode]) -> dict[str, Shading]:
    """The quantities that these episodes can be coloured by."""
    episodes = list(episodes)
    found = {}
    for name in COLOURINGS:
        have = [each for each in episodes if name in each.columns and each.response]
        if not have:
            continue
        unit = Shading(name, 1.0)
        sizes = torch.cat([unit.values(each)[each.drawn] for each in have]).abs()
        limit = torch.quantile(sizes[: 2**20].double(), _QUANTILE).item()
        found[name] = Shading(name, limit if limit > _SMALLEST else sizes.max().item() or 1.0)
    return found


def shading_by(name: str | None, known: dict[str, Shading]) -> Shading | None:
    """The one asked for; the first there is where none is asked for.

    Raises:
        InputError: it is none, or these rollouts hold no such number.
    """
    if name is None:
        return next(iter(known.values()), None)
    if name not in COLOURINGS:
        near, one = nearest(name, COLOURINGS), ", ".join(COLOURINGS)
        raise InputError(f"--colour {name}: no such number{near}; write one of {one}")
    if name not in known:
        has = f"write one of {', '.join(known)}" if known else "leave it out"
        raise InputError(f"--colour {name}: these rollouts hold none; {has}")
    return known[name]
