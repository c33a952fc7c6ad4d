"""Rules on repetition within a document, and their counterparts for scripts without spaces.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher",
appendix A.1.1 and table A1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.data.cleaning.features import Features
from fourstage.data.cleaning.verdict import KEPT, Verdict, above

# Share of the characters that the most frequent n-gram may cover, and that n-grams which occurred
# before may.
TOP = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
DUPLICATE_LINES = 0.30
DUPLICATE_CHARACTERS = 0.20
# A Chinese word has 1.6 characters; n words are taken as 2n, so that no set phrase of four
# characters counts for more than a pair of words.
_CHARACTERS_A_WORD = 2
_PARAGRAPHS = re.compile(r"\n{2,}")


def repetition(features: Features) -> Verdict:
    """Drops documents that repeat themselves.

    By lines, paragraphs, and the characters in them; by the most frequent 2-, 3- and 4-gram
    ("top_2_gram" ...); by 5- to 10-grams that occurred before ("duplicate_5_gram" ...). In scripts
    without spaces n counts pairs of characters.
    """
    return _pieces(features.text) or _grams(features) or KEPT


def repeated(pieces: Iterable[str]) -> tuple[int, int]:
    """How many pieces occurred before, and how many characters they have."""
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        else:
            seen.add(piece)
    return count, characters


def _pieces(text: str) -> Verdict | None:
    for name, pieces in (
        ("paragraphs", _PARAGRAPHS.split(text.strip()) if "\n\n" in text else [text]),
        ("lines", [line for line in text.split("\n") if line] or [text]),
    ):
        count, characters = repeated(pieces)
        fault = above(f"duplicate_{name}", count / len(pieces), DUPLICATE_LINES) or above(
            f"duplicate_{name}_characters", characters / len(text), DUPLICATE_CHARACTERS
        )
        if fault:
            return fault
    return None


def _grams(features: Features) -> Verdict | None:
    scale = _CHARACTERS_A_WORD if features.is_unspaced else 1
    spaces = 0 if features.is_unspaced else 1
    total = len(features.text)
    ends = np.concatenate([[0], np.cumsum(features.lengths)])
    for grams in repeated_grams(features.ids, scale * max(DUPLICATE)):
        n, rest = divmod(grams.n, scale)
        if rest:
            continue
        if n in TOP and len(ends) > grams.n:
            first, times = grams.top()
            if times == 1 and features.is_unspaced:
                # datatrove takes even texts of 25 words that repeat nothing for repetitive;
                # as many characters are a poem.
                continue
            characters = int(ends[first + grams.n] - ends[first]) + (grams.n - 1) * spaces
            fault = above(f"top_{n}_gram", characters * times / total, TOP[n])
        elif n in DUPLICATE:
            if _covered(grams, ends) <= min(DUPLICATE.values()) * total:
                # Longer n-grams cover no more than these, and all of these too little.
                return None
            again = np.array(grams.again(), np.int64)
            characters = int((ends[again + grams.n] - ends[again]).sum())
            fault = above(f"duplicate_{n}_gram", characters / total, DUPLICATE[n])
        else:
            fault = None
        if fault:
            return fault
    return None


def _covered(grams: Grams, ends: np.ndarray) -> int:
    """Characters of all occurrences of repeated n-grams, of which some may be counted twice."""
    return int((ends[grams.positions + grams.n] - ends[grams.positions]).sum())


@dataclass(frozen=True)
class Grams:
    """The n-grams of a text that occur more than once.

    Attributes:
        n: words of each.
        positions: [m] rising: where each occurrence begins.
        groups: [m] which n-gram it is, from 0.
    """

    n: int
    positions: np.ndarray
    groups: np.ndarray

    def top(self) -> tuple[int, int]:
        """Where the most frequent n-gram first occurs, and how often it does."""
        if not len(self.groups):
            return 0, 1
        counts = np.bincount(self.groups)
        # Of several that are as frequent the first to occur, which need not have the first number.
        index = int(np.argmax((counts == counts.max())[self.groups]))
        return int(self.positions[index]), int(counts.max())

    def again(self) -> list[int]:
        """Where n-grams begin that occurred before, none overlapping the one before it.

        Read from the start as datatrove does: after a repeated n-gram reading goes on behind it.
        """
        found: list[int] = []
        seen: set[int] = set()
        behind = 0
        for position, group in zip(self.positions.tolist(), self.groups.tolist(), strict=True):
            if position < behind:
                continue
            if group in seen:
                found.append(position)
                behind = position + self.n
            else:
                seen.add(group)
        return found


def repeated_grams(ids: Sequence[int] | np.ndarray, most: int) -> Iterator[Grams]:
    """Repeated n-grams of a sequence of numbers from 0, for n = 2 ... most.

    An (n+1)-gram can only be repeated where two n-grams that follow each other are, so that few
    places are left to look at after the first lengths.
    """
    groups = np.asarray(ids, np.int64)
    positions = np.arange(len(groups))
    for n in range(2, most + 1):
        if len(positions):
            following = np.flatnonzero(np.diff(positions) == 1)
            keys = groups[following] * (groups.max() + 1) + groups[following + 1]
            often, groups = _repeats(keys)
            positions, groups = positions[following[often]], groups[often]
        yield Grams(n, positions, groups)


def _repeats(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which keys occur more than once, and numbers from 0 that are equal where keys are."""
    order = np.argsort(keys)
    ranked = keys[order]
    same = ranked[1:] == ranked[:-1]
    often, groups = np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
    often[order[1:]] = same
    often[order[:-1]] |= same
    groups[order[1:]] = np.cumsum(~same)
    return often, groups
