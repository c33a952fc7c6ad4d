"""What documents have in common with earlier ones: near duplicates, repeated passages and lines."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fourstage.data.corpus.columns import Part
from fourstage.data.deduplication import MinHasher, near_duplicates, repeated

# Characters of both texts of all pairs that are compared at once.
_CHARACTERS = 1 << 26


def hasher(near: float) -> MinHasher:
    """What signs the documents: also where near duplicates stay, the split must know them."""
    return MinHasher(near) if near else MinHasher()


def clusters_of(
    parts: Sequence[Part], firsts: np.ndarray, documents: np.ndarray, near: float, aside: Path
) -> np.ndarray:
    """The first of the near duplicates of each document.

    Args:
        firsts: [parts + 1] number of the first document of each part.
        documents: [m] the documents that are compared, ascending.
        near: Jaccard similarity; 0 is the usual one.
        aside: a folder in which the signatures are gathered while they are compared.

    Returns:
        [m] numbers of documents.
    """
    if not len(documents):
        return documents
    signer = hasher(near)
    sizes = np.concatenate([part.column("characters") for part in parts])[documents]

    def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        held = np.cumsum(sizes[left] + sizes[right]) // _CHARACTERS
        found = []
        for pairs in np.split(np.arange(len(left)), np.flatnonzero(np.diff(held)) + 1):
            sides = (_texts(parts, firsts, documents[side[pairs]]) for side in (left, right))
            found.append(signer.similarities(*sides))
        return np.concatenate(found)

    # A file without a name: it is gone when it is closed, whatever happens.
    with tempfile.TemporaryFile(dir=aside) as file:
        shape = (len(documents), parts[0].column("signatures").shape[1])
        os.ftruncate(file.fileno(), 4 * shape[0] * shape[1])
        signatures = np.memmap(file, np.uint32, "r+", shape=shape)
        for number, part in enumerate(parts):
            low, high = np.searchsorted(documents, firsts[number : number + 2])
            if high > low:
                own = documents[low:high] - firsts[number]
                signatures[low:high] = part.column("signatures")[own]
        found = near_duplicates(signatures, signer.bands, signer.threshold, similarity)
        del signatures
    return documents[found]


def _texts(parts: Sequence[Part], firsts: np.ndarray, documents: np.ndarray) -> list[str]:
    """Texts of documents by their numbers, a part at a time."""
    texts = [""] * len(documents)
    numbers = np.searchsorted(firsts, documents, side="right") - 1
    for number in np.unique(numbers).tolist():
        places = np.flatnonzero(numbers == number)
        own = parts[number].some_texts(documents[places] - firsts[number])
        for place, text in zip(places.tolist(), own, strict=True):
            texts[place] = text
    return texts


def repeats_of(
    parts: Sequence[Part], firsts: np.ndarray, kept: np.ndarray, passages: bool, lines: int
) -> tuple[np.ndarray, np.ndarray]:
    """Passages and lines of kept documents that an earlier one has, too.

    Args:
        kept: [n] whether each document is kept.
        passages: whether passages are looked for.
        lines: how many documents share a line that is cut; 0 is never.

    Returns:
        Documents, [m] ascending, and [m, 2] from which character of each to which.
    """
    documents, bounds, hashes, is_line = [], [], [], []
    for number, part in enumerate(parts):
        whose = part.column("span_documents") + firsts[number]
        chosen = np.flatnonzero(kept[whose])
        documents.append(whose[chosen])
        bounds.append(part.column("span_bounds")[chosen].astype(np.uint32))
        hashes.append(part.column("span_hashes")[chosen])
        is_line.append(part.column("span_lines")[chosen])
    whose, where = np.concatenate(documents), np.concatenate(bounds)
    named, single = np.concatenate(hashes), np.concatenate(is_line).astype(bool)
    cut = np.zeros(len(whose), bool)
    for wanted, least in ((~single, 2 if passages else 0), (single, lines)):
        own = np.flatnonzero(wanted)
        if least and len(own):
            cut[own] = repeated(named[own], whose[own], least)
    return whose[cut], where[cut].astype(np.int64)
