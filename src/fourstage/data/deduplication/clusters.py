"""Which documents are one: equal ones by their hash, near duplicates by their signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fourstage.data.deduplication.minhash import EMPTY, NAME
from fourstage.data.deduplication.words import mixed

# Documents of a bucket are compared with its first and with this many that follow them. All pairs
# of a small bucket are; a bucket of n costs 17 n comparisons, not n^2 / 2.
_NEIGHBOURS = 16
# Pairs compared at once, and rows hashed at once.
_PAIRS = 1 << 15
_ROWS = 1 << 16
# Standard errors of the estimate beyond which texts need not be looked at.
_ERRORS = 3.0

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]


def first_of_equal(hashes: np.ndarray) -> np.ndarray:
    """The first document with the same content.

    Args:
        hashes: [n, 2] unsigned integers, of the content.

    Returns:
        [n] int64, an index not above the document's own.
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.int64)
    # lexsort is stable: the first of a group has the smallest index.
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


def clusters(*firsts: np.ndarray) -> np.ndarray:
    """Documents united where any of several findings unites them.

    With exact and near duplicates together, a cluster is what must lie on one side of a split,
    whether or not duplicates are removed.

    Args:
        firsts: each [n] int64: an earlier document, or itself, to which each one belongs.

    Returns:
        [n] int64, the smallest index of each one's cluster.
    """
    forest = _Forest(len(firsts[0]))
    for first in firsts:
        forest.unite(np.arange(len(first)), first)
    return forest.roots


def near_duplicates(
    signatures: np.ndarray,
    bands: int,
    threshold: float,
    similarity: Similarity | None = None,
) -> np.ndarray:
    """The first document of each one's cluster of near duplicates.

    Documents with the same sentences in any order are one. Others are candidates when a whole band
    of their signatures agrees (see `minhash`), and near duplicates when their similarity reaches
    the threshold: that of the signatures, or where it is too close to the threshold to tell, the
    exact one. Clusters are the connected components.

    Beside the signatures, which may be a memory map, it takes about 100 bytes a document.

    Args:
        signatures: [n, bands x rows + NAME] uint32, as `MinHasher` makes them.
        bands: into which the signatures are cut.
        threshold: the Jaccard similarity.
        similarity: exact similarities of documents, from two arrays [m] of their indices; without
            it the signatures decide, with a standard error of about 0.04 for 130 permutations.

    Returns:
        [n] int64, the smallest index of the cluster; a document alone has its own.
    """
    forest = _Forest(len(signatures))
    minima, names = signatures[:, :-NAME], signatures[:, -NAME:]
    has_words = np.flatnonzero((minima[:, 0] != EMPTY) | (minima[:, 1] != EMPTY))
    forest.unite(has_words, has_words[first_of_equal(names[has_words])])
    judge = _Judge(minima, threshold, similarity)
    rows = minima.shape[1] // bands
    for band in range(bands):
        keys, documents = _keys(minima, band * rows, (band + 1) * rows)
        for left, right in _neighbours(keys, documents):
            for at in range(0, len(left), _PAIRS):
                pairs = forest.apart(left[at : at + _PAIRS], right[at : at + _PAIRS])
                forest.unite(*judge.alike(*pairs))
    return forest.roots


def _keys(signatures: np.ndarray, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of one band of the documents that have words, ascending, and which those are."""
    keys = np.zeros(len(signatures), np.uint64)
    filled = np.zeros(len(signatures), bool)
    for at in range(0, len(signatures), _ROWS):
        band = np.asarray(signatures[at : at + _ROWS, start:end])
        filled[at : at + _ROWS] = (band != EMPTY).any(axis=1)
        for column in band.T:
            keys[at : at + _ROWS] = mixed(keys[at : at + _ROWS] + column + np.uint64(1))
    documents = np.flatnonzero(filled)
    order = np.argsort(keys[documents], kind="stable")
    return keys[documents[order]], documents[order]


def _neighbours(keys: np.ndarray, documents: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of documents in a bucket: each with the first of it, then with those that follow."""
    if len(keys) < 2:
        return
    same = keys[1:] == keys[:-1]
    shared = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    keys, documents = keys[shared], documents[shared]
    if not len(keys):
        return
    begins = np.concatenate([[True], keys[1:] != keys[:-1]])
    firsts = documents[begins][np.cumsum(begins) - 1]
    yield firsts[~begins], documents[~begins]
    for distance in range(1, _NEIGHBOURS + 1):
        together = keys[distance:] == keys[:-distance]
        if not together.any():
            return
        yield documents[:-distance][together], documents[distance:][together]


class _Judge:
    """Tells whether pairs are near duplicates, and remembers those that were read and were not."""

    def __init__(self, signatures: np.ndarray, threshold: float, similarity: Similarity | None):
        self.signatures = signatures
        self.threshold = threshold
        self.similarity = similarity
        self.margin = 0.0
        if similarity is not None:
            variance = threshold * (1 - threshold) / signatures.shape[1]
            self.margin = _ERRORS * variance**0.5
        self.refused = np.zeros(0, np.uint64)

    def alike(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the pairs, both [m], that are near duplicates."""
        estimates = (self.signatures[left] == self.signatures[right]).mean(axis=1)
        alike = estimates >= self.threshold + self.margin
        if self.similarity is not None:
            close = np.flatnonzero(~alike & (estimates > self.threshold - self.margin))
            names = left[close].astype(np.uint64) * np.uint64(len(self.signatures))
            names += right[close].astype(np.uint64)
            unread = ~self._among_refused(names)
            close, names = close[unread], names[unread]
            if len(close):
                found = self.similarity(left[close], right[close]) >= self.threshold
                alike[close] = found
                self.refused = np.union1d(self.refused, names[~found])
        return left[alike], right[alike]

    def _among_refused(self, names: np.ndarray) -> np.ndarray:
        if not len(self.refused):
            return np.zeros(len(names), bool)
        places = np.searchsorted(self.refused, names)
        return self.refused[np.minimum(places, len(self.refused) - 1)] == names


class _Forest:
    """Disjoint sets of which the smallest member is the root; all pairs of a call at once.

    Attributes:
        roots: [n] int64, the root of each member.
    """

    def __init__(self, size: int):
        self.roots = np.arange(size)

    def apart(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the pairs that are in two sets."""
        differ = self.roots[left] != self.roots[right]
        return left[differ], right[differ]

    def unite(self, left: np.ndarray, right: np.ndarray) -> None:
        """Unites the sets of `left[i]` and `right[i]`, for every i."""
        while len(left):
            a, b = self.roots[left], self.roots[right]
            np.minimum.at(self.roots, np.maximum(a, b), np.minimum(a, b))
            # Roots now point at smaller ones: follow until all point at roots.
            while (self.roots[self.roots] != self.roots).any():
                self.roots = self.roots[self.roots]
            left, right = self.apart(left, right)
