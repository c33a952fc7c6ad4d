"""Equal documents and near duplicates, on texts of which the truth is known."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deduplication_texts import KINDS, SAME_DOCUMENT, Writer, copied
from fourstage.data.deduplication import (
    MinHasher,
    clusters,
    first_of_equal,
    near_duplicates,
    normalised,
)
from fourstage.data.deduplication.minhash import (
    RECALL,
    bands_and_rows,
    candidate_probability,
)
from fourstage.errors import InputError

SIZES = (40, 60, 90, 150, 250, 400)


def jaccard(left: str, right: str, size: int = 5) -> float:
    """Of the sets of word n-grams, as the textbook has it."""
    sides = []
    for words in (normalised(left), normalised(right)):
        sides.append({tuple(words[i : i + size]) for i in range(max(len(words) - size + 1, 1))})
    return len(sides[0] & sides[1]) / len(sides[0] | sides[1])


def pairs(language: str, each: int) -> tuple[list[str], list[str]]:
    """Originals, all different, then a copy of each; and the kind of each copy."""
    writer = Writer(language, random.Random(1))
    other = Writer("en" if language == "zh" else "zh", random.Random(2))
    kinds = [kind for kind in KINDS for _ in range(each)]
    originals = [writer.sentences(SIZES[i % len(SIZES)]) for i in range(len(kinds))]
    copies = [copied(writer, kind, s, other) for kind, s in zip(kinds, originals, strict=True)]
    return [*map(writer.written, originals), *copies], kinds


def found_pairs(texts: list[str], hasher: MinHasher) -> np.ndarray:
    """[n / 2] whether the copy was found to be its original; nothing else may be united."""
    array = np.array(texts, dtype=object)

    def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return hasher.similarities(array[left], array[right])

    signatures = hasher.signatures(texts)
    first = near_duplicates(signatures, hasher.bands, hasher.threshold, similarity)
    half = len(texts) // 2
    assert (first[:half] == np.arange(half)).all()
    assert np.isin(first[half:], [np.arange(half), np.arange(half, 2 * half)]).all()
    return first[half:] == np.arange(half)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_copies_are_found_and_what_only_shares_text_is_not(language: str):
    texts, kinds = pairs(language, each=60)
    found = found_pairs(texts, MinHasher())
    truth = np.array([kind in SAME_DOCUMENT for kind in kinds])
    assert (found & truth).sum() / truth.sum() >= 0.95
    assert (found & truth).sum() / found.sum() >= 0.95
    by_kind = {kind: found[np.array(kinds) == kind].mean() for kind in KINDS}
    assert by_kind["exact"] == by_kind["reordered"] == 1
    assert by_kind["half copied"] == by_kind["translated"] == 0


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.8])
def test_near_duplicates_are_those_whose_jaccard_similarity_reaches_the_threshold(threshold: float):
    writer = Writer("en", random.Random(3))
    originals, copies = [], []
    for i in range(240):
        words = writer.sentence(SIZES[i % len(SIZES)])
        originals.append(" ".join(words))
        for _ in range(1 + i % 7 * len(words) // 120):
            words[writer.random.randrange(len(words))] = writer.random.choice(writer.words)
        copies.append(" ".join(words))
    truth = np.array(list(map(jaccard, originals, copies))) >= threshold
    assert 40 < truth.sum() < 220
    found = found_pairs([*originals, *copies], MinHasher(threshold))
    assert (found & truth).sum() / truth.sum() >= 0.95
    assert (found & truth).sum() / found.sum() >= 0.95


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.7, 0.8, 0.9])
def test_a_pair_at_the_threshold_is_compared_with_the_promised_probability(threshold: float):
    bands, rows = bands_and_rows(threshold, 144)
    assert bands * rows <= 144
    assert candidate_probability(threshold, bands, rows) >= RECALL
    more = rows + 1
    assert candidate_probability(threshold, 144 // more, more) < RECALL


def test_the_formula_holds_for_signatures():
    writer, hasher = Writer("en", random.Random(4)), MinHasher(0.7)
    shared, alone = 70, 30
    parts = [[writer.sentence(5) for _ in range(shared + 2 * alone)] for _ in range(150)]
    # Glued, five words are one that nothing else shares: their 1-grams do not overlap.
    glued = [["".join(words) for words in sentences] for sentences in parts]
    hasher.ngram = 1
    left = hasher.signatures([" ".join(words[: shared + alone]) for words in glued])
    right = hasher.signatures([" ".join(words[:shared] + words[-alone:]) for words in glued])
    agree = (left == right)[:, : hasher.permutations]
    similarity = shared / (shared + 2 * alone)
    error = (similarity * (1 - similarity) / agree.size) ** 0.5
    assert abs(agree.mean() - similarity) < 4 * error
    candidates = agree.reshape(150, hasher.bands, hasher.rows).all(axis=2).any(axis=1).mean()
    expected = candidate_probability(similarity, hasher.bands, hasher.rows)
    assert abs(candidates - expected) < 4 * (expected * (1 - expected) / 150) ** 0.5


def test_signatures_do_not_depend_on_the_batch():
    writer, hasher = Writer("zh", random.Random(5)), MinHasher()
    texts = [writer.document(size) for size in (3, 40, 9000, 1, 40_000, 200)] + ["", "?!"]
    together = hasher.signatures(texts)
    assert np.array_equal(together, np.concatenate([hasher.signatures([t]) for t in texts]))
    assert np.array_equal(together[::-1], hasher.signatures(texts[::-1]))


@given(st.lists(st.sampled_from(["a b c d e f", "a b c d e g", "A, b: c! d e f", ""])))
def test_similarities_are_exact(texts: list[str]):
    hasher = MinHasher(ngram=2)
    right = texts[::-1]
    expected = [jaccard(a, b, 2) if a and b else 0.0 for a, b in zip(texts, right, strict=True)]
    assert hasher.similarities(texts, right).tolist() == expected


def test_texts_without_words_are_no_duplicates_of_each_other():
    hasher = MinHasher()
    signatures = hasher.signatures(["", "!!", "?", "yes", "Yes."])
    assert near_duplicates(signatures, hasher.bands, 0.7).tolist() == [0, 1, 2, 3, 3]


def test_a_text_shorter_than_the_ngram_is_compared_as_a_whole():
    hasher = MinHasher()
    signatures = hasher.signatures(["Old red house", "old, red house!", "old red houses"])
    assert near_duplicates(signatures, hasher.bands, 0.7).tolist() == [0, 0, 2]


def test_many_equal_or_alike_documents_are_one_cluster_without_comparing_all_pairs():
    hasher, generator = MinHasher(), np.random.default_rng(0)
    page = generator.integers(0, 2**32 - 1, hasher.permutations + 2, dtype=np.uint32)
    signatures = np.tile(page, (60_000, 1))
    differ = generator.random((30_000, hasher.permutations)) < 0.1
    signatures[30_000:, :-2][differ] = generator.integers(0, 2**32 - 1, differ.sum())
    signatures[30_000:, -2:] = generator.integers(0, 2**32 - 1, (30_000, 2))
    compared = []

    def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        compared.append(len(left))
        return (signatures[left] == signatures[right]).mean(axis=1)

    assert (near_duplicates(signatures, hasher.bands, 0.7, similarity) == 0).all()
    assert sum(compared) < 100_000


def test_a_pair_that_was_read_and_refused_is_not_read_again():
    hasher = MinHasher()
    row = np.arange(2 * (hasher.permutations + 2), dtype=np.uint32).reshape(2, -1)
    row[1, : int(0.66 * hasher.permutations)] = row[0, : int(0.66 * hasher.permutations)]
    read = []

    def similarity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        read.extend(zip(left.tolist(), right.tolist(), strict=True))
        return np.zeros(len(left))

    assert near_duplicates(row, hasher.bands, 0.7, similarity).tolist() == [0, 1]
    assert read == [(0, 1)]


def test_signatures_may_lie_on_disk(tmp_path):
    texts, _ = pairs("en", each=4)
    hasher = MinHasher()
    signatures = hasher.signatures(texts)
    np.save(tmp_path / "signatures.npy", signatures)
    mapped = np.load(tmp_path / "signatures.npy", mmap_mode="r", allow_pickle=False)
    expected = near_duplicates(signatures, hasher.bands, 0.7)
    assert np.array_equal(near_duplicates(mapped, hasher.bands, 0.7), expected)
    assert len(near_duplicates(hasher.signatures([]), hasher.bands, 0.7)) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_the_first_of_equal_hashes_is_found(rows: list[tuple[int, int]]):
    hashes = np.array(rows, np.uint64).reshape(-1, 2)
    assert first_of_equal(hashes).tolist() == [rows.index(row) for row in rows]


@given(st.data(), st.integers(1, 12))
def test_clusters_unite_whatever_any_finding_unites(data: st.DataObject, size: int):
    earlier = st.tuples(*(st.integers(0, i) for i in range(size)))
    firsts = [data.draw(earlier) for _ in range(2)]
    expected = list(range(size))
    for _ in range(size):
        for first in firsts:
            for i, j in enumerate(first):
                low, high = sorted((expected[i], expected[j]))
                expected = [low if each == high else each for each in expected]
    assert clusters(*map(np.array, firsts)).tolist() == expected


@pytest.mark.parametrize("threshold", [0.0, 1.0, 0.01])
def test_a_threshold_that_cannot_be_kept_is_refused(threshold: float):
    with pytest.raises(InputError, match="near-duplicate threshold"):
        MinHasher(threshold)
