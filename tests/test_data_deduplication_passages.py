"""Passages and lines that several documents share: which are found, and what cutting leaves."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deduplication_texts import Writer, copied
from fourstage.data.deduplication import normalised, passages, repeated, spans, without


def cleared(texts: list[str], least_words: int = 50, least_documents: int = 2) -> list[str]:
    """Texts without passages that an earlier one holds."""
    found = spans(texts, least_words)
    chosen = np.flatnonzero(~found.is_line)
    cut = chosen[repeated(found.hashes[chosen], found.documents[chosen], least_documents)]
    return [
        without(text, found.bounds[cut[found.documents[cut] == number]].tolist())
        for number, text in enumerate(texts)
    ]


def without_lines(texts: list[str], least_documents: int) -> list[str]:
    """Texts without lines that so many of them hold."""
    found = spans(texts)
    chosen = np.flatnonzero(found.is_line)
    cut = chosen[repeated(found.hashes[chosen], found.documents[chosen], least_documents)]
    return [
        without(text, found.bounds[cut[found.documents[cut] == number]].tolist())
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize(("language", "size"), [("en", 160), ("en", 400), ("zh", 240), ("zh", 600)])
def test_half_a_document_copied_into_another_is_found_and_nothing_else(language: str, size: int):
    writer = Writer(language, random.Random(size))
    sentences = [writer.sentences(size) for _ in range(40)]
    originals = [writer.written(each) for each in sentences]
    copies = [copied(writer, "half copied", each, writer) for each in sentences]
    left = cleared([*originals, *copies])
    assert left[:40] == originals
    least = 50 if language == "en" else 75
    for original, copy, rest in zip(originals, copies, left[40:], strict=True):
        words = normalised(copy)
        half = next(
            i for i, (a, b) in enumerate(zip(words, normalised(original), strict=False)) if a != b
        )
        kept = normalised(rest)
        # Only the end of the copy is left, which is shorter than a passage; the new half is whole.
        assert words[-len(kept) :] == kept
        assert len(words) - half <= len(kept) < len(words) - half + least


def test_passages_are_found_under_another_case_spacing_and_punctuation():
    writer = Writer("en", random.Random(0))
    text = writer.document(200)
    other = text.upper().replace(". ", " !\n")
    assert cleared([text, f"A new start.\n\n{other}"])[1] == "A new start."


def test_short_lines_of_verse_and_dialogue_are_no_passages():
    verse = "Row, row, row your boat.\nGently down the stream.\n"
    dialogue = "“Yes.”\n“No.”\n“Who is there?”\n“It is me,” she said.\n"
    texts = [verse + "One ending.", verse + "Another ending.", dialogue + "A.", dialogue + "B."]
    assert cleared(texts) == texts


def test_a_refrain_within_one_document_stays_unless_repeats_within_documents_are_asked_for():
    writer = Writer("en", random.Random(1))
    refrain = writer.document(60)
    song = "\n\n".join([writer.document(40), refrain, writer.document(40), refrain])
    assert cleared([song]) == [song]
    assert cleared([song], least_documents=1)[0].count(refrain) == 1


def test_a_line_on_enough_pages_stays_on_the_first_only():
    writer = Writer("en", random.Random(2))
    bodies = [writer.document(30) for _ in range(12)]
    pages = [f"{body}\nShare this article!\n\n{body[::-1]}" for body in bodies]
    few = [f"{body}\nPrint this page" for body in bodies[:9]]
    cut = without_lines(pages + few, least_documents=10)
    assert cut[0] == pages[0]
    assert cut[1:12] == [f"{body}\n\n{body[::-1]}" for body in bodies[1:]]
    assert cut[12:] == few


def test_lines_of_one_or_two_words_and_of_none_are_not_counted():
    page = "ROMEO:\n}\n---\nRead more\nthree words here"
    found = spans([page])
    lines = found.bounds[found.is_line]
    assert [page[a:b] for a, b in lines] == ["three words here"]


@pytest.mark.parametrize("texts", [[], [""], ["", "  \n", "。"]])
def test_texts_without_words_have_no_spans(texts: list[str]):
    assert len(spans(texts).hashes) == 0
    assert cleared(texts) == texts


@given(
    st.lists(
        st.lists(st.sampled_from(["Ann ran.", " ", "\n", "我们都在。", "…", "x"])).map("".join),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 6),
)
def test_spans_lie_within_their_text_and_hold_enough(texts: list[str], least: int):
    found = spans(texts, least)
    assert (np.diff(found.documents) >= 0).all()
    by_hash = defaultdict(set)
    for document, (start, end), hash_, is_line in zip(
        found.documents, found.bounds.tolist(), found.hashes.tolist(), found.is_line, strict=True
    ):
        assert 0 <= start < end <= len(texts[document])
        words = normalised(texts[document][start:end])
        if not is_line:
            assert sum(1 if word.isascii() else 2 / 3 for word in words) >= least - 1e-9
        by_hash[hash_].add((tuple(words), bool(is_line)))
    assert all(len(each) == 1 for each in by_hash.values())


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4))),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_repeats_are_all_but_the_first_of_what_enough_documents_hold(
    occurrences: list[tuple[int, int]], least: int, partition: int
):
    occurrences = sorted(occurrences)
    documents = np.array([document for document, _ in occurrences], np.int64)
    names = [name for _, name in occurrences]
    whole = passages._PARTITION
    passages._PARTITION = partition
    try:
        found = repeated(np.array(names, np.uint64), documents, least)
    finally:
        passages._PARTITION = whole
    for i, (_, name) in enumerate(occurrences):
        holders = {document for document, other in occurrences if other == name}
        assert found[i] == (len(holders) >= least and name in names[:i])


@pytest.mark.parametrize(
    ("text", "cut", "left"),
    [
        ("One. Two. Three.", " Two.", "One. Three."),
        ("一。二。三。", "二。", "一。三。"),
        ("a\nCUT\nb", "CUT", "a\nb"),
        ("a\n\nCUT\n\nb", "CUT", "a\n\nb"),
        ("a\n\nCUT\nb", "CUT\n", "a\n\nb"),
        ("CUT\n\nb ", "CUT", "b "),
        (" a\nCUT\n", "CUT", " a"),
        ("CUT", "CUT", ""),
        ("left alone \n\n\n here", "", "left alone \n\n\n here"),
    ],
)
def test_what_is_cut_leaves_the_paragraphs_and_lines_around_it(text: str, cut: str, left: str):
    start = text.index(cut)
    assert without(text, [(start, start + len(cut))]) == left


@given(
    st.text(alphabet="ab \n", max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4),
)
def test_cutting_takes_what_lies_in_the_cuts_and_only_that(text: str, cuts: list[tuple[int, int]]):
    cuts = [tuple(sorted(min(edge, len(text)) for edge in cut)) for cut in cuts]
    inside = {i for start, end in cuts for i in range(start, end)}
    kept = "".join(c for i, c in enumerate(text) if i not in inside)
    left = without(text, cuts)
    assert "".join(left.split()) == "".join(kept.split())
    if all(start == end for start, end in cuts):
        assert left == text
