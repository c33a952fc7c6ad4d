"""Words as hashes: what is left of a text when case, spacing and punctuation do not count.

A word is a run of letters, digits and marks after Unicode's NFKC and case folding. In scripts
written without spaces (Han, kana, Thai ...) every character is a word. Apostrophes and invisible
characters are dropped, so that "don't", "don’t" and "DONT" are one word; everything else that is
no word separates words.

`normalised` says it in a few lines; `Words` does the same for many texts at once, in numpy, and
keeps a 64-bit hash of each word.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# What a character does: part words, be part of one, be one, vanish, or change its neighbours.
_SEPARATES, _LETTER, _CHARACTER, _VANISHES, _COMBINES = range(5)

# First and last of the scripts without spaces between words.
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_APOSTROPHES = "'‘’ʼ`´＇"
_VARIATION_SELECTORS = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
# Nothing is assigned between here and the private planes, save for what is listed above.
_ASSIGNED = 0x33480
_JAMO = range(0x1100, 0x1200)

# An odd number, so that it has an inverse modulo 2^64; its bits are those of the golden ratio.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
# Characters that are hashed together: their arrays fit in a cache of some megabytes.
_GROUP = 1 << 17

# How much a word holds, and a character of a script without spaces: a text in English has about two
# words where its translation has three Chinese characters.
WORD, CHARACTER = 3, 2

# Where a long text may be cut: never within a word.
_LIMIT = re.compile(r"[\s。，]")


def normalised(text: str) -> list[str]:
    """The words of a text."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    _, kinds = _tables()
    words, inside = [], False
    for character in folded:
        kind = kinds[ord(character)]
        if kind == _VANISHES:
            continue
        if kind == _LETTER and inside:
            words[-1] += character
        elif kind != _SEPARATES:
            words.append(character)
        inside = kind == _LETTER
    return words


@dataclass(frozen=True)
class Words:
    """The words of n texts, end to end.

    Attributes:
        hashes: [w] uint64, one a word; equal words of any text have equal hashes.
        offsets: [n + 1] int64; text i has the words `offsets[i]` to `offsets[i + 1]`.
        places: [w] int64, the character of its text at which each begins.
        is_character: [w] whether the word is one character of a script without spaces.
    """

    hashes: np.ndarray
    offsets: np.ndarray
    places: np.ndarray
    is_character: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        """The words of each text, as `normalised` finds them."""
        counts = np.zeros(len(texts) + 1, np.int64)
        columns = [(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, bool))]
        for pieces in _groups(texts):
            hashes, places, is_character, words = _hashed([piece.text for piece in pieces])
            places += np.repeat([piece.start for piece in pieces], words)
            columns.append((hashes, places, is_character))
            np.add.at(counts, [piece.number + 1 for piece in pieces], words)
        hashes, places, is_character = (np.concatenate(each) for each in zip(*columns, strict=True))
        return cls(hashes, np.cumsum(counts), places, is_character)

    @property
    def counts(self) -> np.ndarray:
        """[n] words of each text."""
        return np.diff(self.offsets)

    @property
    def reach(self) -> np.ndarray:
        """[w + 1] int64: how much text lies before each word, in units of 1 / `WORD` words."""
        weights = np.where(self.is_character, CHARACTER, WORD)
        return np.concatenate([[0], np.cumsum(weights)])

    def ngrams(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all runs of `size` words within a text; a shorter text is one run.

        Returns:
            [g] uint64, and [n + 1] int64 offsets: text i has those from `offsets[i]` on. A text
            without words has none.
        """
        counts = np.where(self.counts == 0, 0, np.maximum(self.counts - size + 1, 1))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        starts = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1] - offsets[:-1], counts)
        ends = np.minimum(starts + size, np.repeat(self.offsets[1:], counts))
        return self.runs(starts, ends), offsets

    def runs(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """[m] uint64, the hash of the words from `starts` (ascending) to `ends`, both [m]."""
        return hash_runs(self.hashes, starts, ends)


def mixed(values: np.ndarray) -> np.ndarray:
    """64-bit values scattered over all 64-bit values, one to one (splitmix64, Steele 2014)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def hash_runs(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hashes of runs of values, each at the price of a few operations, however long it is.

    A run v[s], ..., v[e - 1] has the polynomial sum of v[s + i] B^i modulo 2^64 (Karp and Rabin
    1987), which is the difference of two prefix sums times B^-s; its bits are then mixed.

    Args:
        values: [w] unsigned integers.
        starts, ends: [m] ascending.

    Returns:
        [m] uint64.
    """
    hashes = np.empty(len(starts), np.uint64)
    for at in range(0, len(starts), _GROUP):
        start, end = starts[at : at + _GROUP], ends[at : at + _GROUP]
        low, high = int(start[0]), int(end.max())
        powers, inverses = _powers(1 << (high - low).bit_length())
        sums = np.zeros(high - low + 1, np.uint64)
        np.cumsum(values[low:high] * powers[: high - low], out=sums[1:])
        hash_ = sums[end - low]
        hash_ -= sums[start - low]
        hash_ *= inverses[start - low]
        hashes[at : at + _GROUP] = mixed(hash_)
    return hashes


@functools.cache
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    bases = np.full((2, size), [[_BASE], [_INVERSE]], np.uint64)
    bases[:, 0] = 1
    powers = np.multiply.accumulate(bases, axis=1)
    return powers[0], powers[1]


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """What each code point folds to (itself where that is no single one), and what that does."""
    folds = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    for first, last in _WITHOUT_SPACES:
        kinds[first : last + 1] = _CHARACTER
    for code in range(_ASSIGNED):
        category = unicodedata.category(chr(code))
        if category[0] not in "LNM":
            kinds[code] = _VANISHES if category == "Cf" else _SEPARATES
        elif kinds[code] != _CHARACTER:
            kinds[code] = _LETTER
    kinds[[*map(ord, _APOSTROPHES), *_VARIATION_SELECTORS]] = _VANISHES
    for code in range(128, _ASSIGNED):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", chr(code)).casefold())
        if len(folded) == 1:
            folds[code] = ord(folded)
    folds[65:91] += 32
    return folds, kinds


@functools.cache
def _neighbourly() -> tuple[np.ndarray, np.ndarray]:
    """[code points] whether folding makes several of it, and whether it joins what precedes it."""
    several, joins = np.zeros((2, sys.maxunicode + 1), bool)
    for code in range(_ASSIGNED):
        folded = unicodedata.normalize("NFKC", chr(code)).casefold()
        several[code] = len(folded) > 1
        joins[code] = unicodedata.category(folded[0])[0] == "M" or ord(folded[0]) in _JAMO
    return several, joins


@dataclass(frozen=True)
class _Piece:
    """Part of text `number`, from character `start`."""

    number: int
    start: int
    text: str


def _groups(texts: Sequence[str]) -> Iterator[list[_Piece]]:
    """Texts, or pieces of long ones, gathered to about the size of a group."""
    pieces: list[_Piece] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _pieces(number, text):
            pieces.append(piece)
            size += len(piece.text)
            if size >= _GROUP:
                yield pieces
                pieces, size = [], 0
    if pieces:
        yield pieces


def _pieces(number: int, text: str) -> Iterator[_Piece]:
    """The text, cut between words where it is long."""
    start = 0
    while len(text) - start > 2 * _GROUP:
        limit = _LIMIT.search(text, start + _GROUP)
        if limit is None:
            break
        yield _Piece(number, start, text[start : limit.start()])
        start = limit.start()
    yield _Piece(number, start, text[start:] if start else text)


def code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Code points of n texts, with a space after each, [c] uint32, and where each begins, [n]."""
    joined = " ".join([*texts, ""]).encode("utf-32-le", "surrogatepass")
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1]
    return np.frombuffer(joined, np.uint32), starts


def _hashed(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of all words: hashes, places, whether each is a character; and the number of each text."""
    folds, kinds = _tables()
    codes, begins = code_points(texts)
    codes, origins = _composed(codes)
    codes = folds[codes]
    kind = kinds[codes]
    vanishes = kind == _VANISHES
    if vanishes.any():
        origins = np.flatnonzero(~vanishes) if origins is None else origins[~vanishes]
        codes, kind = codes[~vanishes], kind[~vanishes]
    # Two letters side by side belong to one word; any other two neighbours do not. The last
    # code is a space, and what stands before the first is the same one.
    is_letter, is_word = kind == _LETTER, kind != _SEPARATES
    joined = is_letter & np.roll(is_letter, 1)
    starts = np.flatnonzero(is_word & ~joined)
    ends = np.flatnonzero(is_word & ~np.roll(joined, -1)) + 1
    places = starts if origins is None else origins[starts]
    counts = np.diff(np.searchsorted(places, begins), append=len(places))
    hashes = hash_runs(codes, starts, ends)
    return hashes, places - np.repeat(begins, counts), kind[starts] == _CHARACTER, counts


def _composed(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Code points, folded where one becomes several or several become one; and whence each came.

    Returns:
        [c'] uint32, and [c'] int64 indices of `codes`; None where nothing was to be done.
    """
    several, joins = _neighbourly()
    follows = joins[codes]
    touched = several[codes] | follows
    if not touched.any():
        return codes, None
    touched[:-1] |= follows[1:]
    edges = np.flatnonzero(np.diff(touched, prepend=False, append=False)).reshape(-1, 2)
    parts, origins, at = [], [], 0
    for start, end in edges.tolist():
        cluster = codes[start:end].tobytes().decode("utf-32-le", "surrogatepass")
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", cluster).casefold())
        parts += [codes[at:start], np.array([*map(ord, folded)], np.uint32)]
        origins += [np.arange(at, start), np.minimum(start + np.arange(len(folded)), end - 1)]
        at = end
    parts.append(codes[at:])
    origins.append(np.arange(at, len(codes)))
    return np.concatenate(parts), np.concatenate(origins)
