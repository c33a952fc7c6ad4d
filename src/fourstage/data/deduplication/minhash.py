"""MinHash: a text as a few hundred bytes from which its likeness to others can be read.

The Jaccard similarity of two texts is the share of their word 5-grams (character 5-grams where a
script has no spaces) that both have. The smallest of a text's hashes under a random permutation
agrees with another's with just that probability (Broder 1997), so the share of agreeing minima
estimates it. Cut into bands of rows, signatures are found alike by sorting: a pair of similarity
s has some band in common with probability 1 - (1 - s^rows)^bands (Leskovec et al. 2020, ch. 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fourstage.data.deduplication.sentences import Sentences
from fourstage.data.deduplication.words import Words, mixed
from fourstage.errors import InputError

# The signature of a text without words. No text has it: permutations differ in what they map to it.
EMPTY = 0xFFFFFFFF
# A pair that is just as similar as the threshold is compared with at least this probability.
RECALL = 0.99
# Numbers at the end of a signature that name its text's sentences.
NAME = 2
# Hashes that are permuted together, so that they stay in the second-level cache.
_BLOCK = 1 << 15


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """The probability that two signatures of that Jaccard similarity share a whole band."""
    return 1 - (1 - similarity**rows) ** bands


def bands_and_rows(threshold: float, permutations: int) -> tuple[int, int]:
    """The most rows a band, so that the fewest dissimilar pairs are compared, within a budget.

    Args:
        threshold: Jaccard similarity at which the probability is to be `RECALL`.
        permutations: the most bands times rows.

    Raises:
        InputError: a threshold outside (0, 1), or one that needs more permutations.
    """
    if not 0 < threshold < 1:
        raise InputError(f"a near-duplicate threshold of {threshold:g}: write one between 0 and 1")
    best = None
    for rows in range(1, permutations + 1):
        bands = math.ceil(math.log(1 - RECALL) / math.log1p(-(threshold**rows)))
        if bands * rows > permutations:
            break
        best = bands, rows
    if best is None:
        raise InputError(
            f"a near-duplicate threshold of {threshold:g} needs more than {permutations} "
            "permutations: write a higher one"
        )
    return best


class MinHasher:
    """Signs texts; the same text has the same signature in every process and on every machine.

    Args:
        threshold: Jaccard similarity from which on two texts are near duplicates.
        ngram: words in a row that are compared; texts with fewer are one run of all they have.
        permutations: the most minima a signature may have.

    Attributes:
        bands, rows: how signatures are cut to find pairs; see `bands_and_rows`.
        permutations: bands x rows, the minima in a signature.

    Raises:
        InputError: see `bands_and_rows`.
    """

    def __init__(self, threshold: float = 0.7, ngram: int = 5, permutations: int = 144):
        self.threshold = threshold
        self.ngram = ngram
        self.bands, self.rows = bands_and_rows(threshold, permutations)
        self.permutations = self.bands * self.rows

    def signatures(self, texts: Sequence[str], words: Words | None = None) -> np.ndarray:
        """[n, permutations + NAME] uint32; a text without words has `EMPTY` throughout.

        Args:
            words: of the texts, where they are at hand.
        """
        words = words or Words.of(texts)
        signatures = np.full((len(texts), self.permutations + NAME), EMPTY, np.uint32)
        minima = signatures[:, : self.permutations]
        hashes, offsets = words.ngrams(self.ngram)
        hashes = (hashes >> np.uint64(32)).astype(np.uint32)
        for at in range(0, len(hashes), _BLOCK):
            self._lower(minima, hashes[at : at + _BLOCK], offsets - at)
        has_words = words.counts > 0
        signatures[has_words, self.permutations :] = _names(texts, words)[has_words]
        return signatures

    def _lower(self, signatures: np.ndarray, hashes: np.ndarray, offsets: np.ndarray) -> None:
        """Lowers signatures to the minima over some hashes; text i has those from its offset on."""
        first = int(np.searchsorted(offsets, 0, "right")) - 1
        last = int(np.searchsorted(offsets, len(hashes), "left"))
        present = first + np.flatnonzero(np.diff(offsets[first : last + 1]))
        starts = np.maximum(offsets[present], 0)
        multipliers, shifts = _permutations(self.permutations)
        minima = np.empty((self.permutations, len(present)), np.uint32)
        permuted = np.empty_like(hashes)
        for row, multiplier, shift in zip(minima, multipliers, shifts, strict=True):
            np.multiply(hashes, multiplier, out=permuted)
            np.add(permuted, shift, out=permuted)
            np.minimum.reduceat(permuted, starts, out=row)
        signatures[present] = np.minimum(signatures[present], minima.T)

    def similarities(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """[n] float64, the exact Jaccard similarity of `left[i]` and `right[i]`; 0 where empty."""
        sides = [Words.of(texts).ngrams(self.ngram) for texts in (left, right)]
        found = np.zeros(len(left))
        for pair in range(len(left)):
            a, b = (np.unique(h[offsets[pair] : offsets[pair + 1]]) for h, offsets in sides)
            shared = len(np.intersect1d(a, b, assume_unique=True))
            found[pair] = shared / max(len(a) + len(b) - shared, 1)
        return found


def _names(texts: Sequence[str], words: Words) -> np.ndarray:
    """[n, NAME] uint32 that are equal for the same sentences in any order."""
    sentences = Sentences.of(texts, words)
    told = np.flatnonzero(np.diff(sentences.offsets))
    # A sum does not depend on the order; that of all before each text is a prefix sum.
    sums = np.concatenate([[np.uint64(0)], np.cumsum(mixed(sentences.hashes(words, told, told)))])
    ends = np.searchsorted(sentences.documents[told], np.arange(len(texts) + 1))
    return np.diff(sums[ends]).reshape(-1, 1).view(np.uint32)


def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Permutations of the 32-bit numbers, h -> h * multiplier + shift: odd multipliers, shifts."""
    drawn = mixed(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return drawn.astype(np.uint32) | np.uint32(1), (drawn >> np.uint64(32)).astype(np.uint32)
