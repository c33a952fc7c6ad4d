"""References are found in documents however they were written, and in no others."""

from __future__ import annotations

import pickle
import random
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deduplication_texts import Writer
from fourstage.data.decontamination import Contamination
from fourstage.data.deduplication import Words, normalised

_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}

CHANGES = {
    "as it is": lambda text: text,
    "upper case": str.upper,
    "swapped case": str.swapcase,
    "full width": lambda text: text.translate(_FULL_WIDTH),
    "half width": lambda text: text.replace("，", ",").replace("。", "."),
    "no punctuation": lambda text: "".join(
        c for c in text if c not in string.punctuation + "，。’"
    ),
    "spaces for punctuation": lambda text: "".join(
        " " if c in string.punctuation + "，。’" else c for c in text
    ),
    "more punctuation": lambda text: "** " + text.replace(" ", " -- ").replace("，", "、…") + " **",
    "curly": lambda text: text.replace("'", "’"),
    "line ends": lambda text: text.replace(" ", "\r\n\t"),
    "wide spaces": lambda text: text.replace(" ", "\u3000\u00a0"),
    "invisible characters": lambda text: text.replace("a", "a\u200b").replace("，", "\ufeff，"),
}
SIZES = {"en": (8, 9, 12, 13, 30, 90), "zh": (12, 15, 19, 20, 45, 130)}


def references(language: str, count: int) -> list[tuple[str, str]]:
    writer = Writer(language, random.Random(language))
    rows = []
    for i in range(count):
        sentences = writer.sentences(SIZES[language][i % len(SIZES[language])])
        if language == "en":
            # Within words, too, there is punctuation.
            sentences[0][2] = f"{sentences[0][2]}'s"
            sentences[0][4] = f"{sentences[0][4][:2]}-{sentences[0][4][2:]}"
        rows.append((f"row {i}", writer.written(sentences)))
    return rows


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_planted_reference_is_found_and_no_clean_document_is_flagged(
    language: str, change: str
):
    planted = references(language, 60)
    contamination = Contamination(planted)
    assert contamination.too_short == 0
    writer = Writer(language, random.Random(7))
    clean = [writer.document(size) for size in range(20, 320, 5)]
    assert contamination.find_each(clean) == [None] * len(clean)
    dirty = [
        f"{before}\n{CHANGES[change](text)}\n{after}"
        for before, after, (_, text) in zip(clean, clean[::-1], planted, strict=True)
    ]
    hits = contamination.find_each(dirty)
    assert [hit and hit.references for hit in hits] == [(name,) for name, _ in planted]


def test_part_of_a_long_reference_is_enough_and_less_than_the_ngram_is_not():
    words = Writer("en", random.Random(0)).sentence(60)
    contamination = Contamination([("quiz, line 3", " ".join(words))])
    hit = contamination.find(f"An answer: {' '.join(words[20:33])} and so on, for a while.")
    assert hit is not None
    assert hit.where == "quiz, line 3"
    assert hit.words == " ".join(words[20:33])
    assert hit.share == pytest.approx(13 / 21)
    assert contamination.find(f"An answer: {' '.join(words[20:32])} and so on.") is None


def test_twenty_chinese_characters_are_the_rule_and_nineteen_are_too_few():
    characters = "".join(Writer("zh", random.Random(0)).sentence(60))
    contamination = Contamination([("quiz", characters)])
    assert contamination.find(f"他们说：{characters[9:29]}。") is not None
    assert contamination.find(f"他们说：{characters[9:28]}。") is None


def test_a_short_reference_counts_as_a_whole_from_eight_words_on():
    eight = "who wrote the first book on this subject"
    contamination = Contamination([("a", eight), ("b", "who wrote the book"), ("c", "?")])
    assert contamination.too_short == 2
    assert contamination.find(f"Tell me: {eight.title()}?").where == "a"
    assert contamination.find("who wrote the first book on this") is None
    assert contamination.find("who wrote the book") is None


def test_what_is_shown_is_what_the_document_says():
    contamination = Contamination([("a", "one two three four five six seven eight")])
    text = "He said: «One, TWO —\nthree four; five six seven eight!»"
    hit = contamination.find(text)
    assert hit.words == "One, TWO —\nthree four; five six seven eight"
    assert text[hit.start : hit.end] == hit.words


def test_the_wording_that_many_references_share_is_no_ones_own():
    writer = Writer("en", random.Random(1))
    template = writer.document(20)
    rows = [(f"row {i}", f"{template} {writer.document(15)}") for i in range(11)]
    contamination = Contamination(rows)
    assert contamination.find(template) is None
    assert contamination.find(rows[4][1]).references == ("row 4",)
    assert Contamination(rows[:10]).find(template) is not None


def test_a_reference_that_is_listed_often_is_one_reference():
    text = Writer("en", random.Random(2)).document(40)
    contamination = Contamination([(f"row {i}", text) for i in range(30)])
    assert contamination.names == ["row 0"]
    assert contamination.find(text).references == ("row 0",)


def test_every_reference_that_a_document_holds_is_named():
    planted = references("en", 12)
    text = "\n".join(text for _, text in planted)
    hit = Contamination(planted).find(text)
    assert hit.references == tuple(name for name, _ in planted)
    assert hit.share == 1


@given(st.data(), st.integers(3, 6))
def test_it_finds_what_a_search_through_all_ngrams_finds(data: st.DataObject, ngram: int):
    words = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)
    rows = data.draw(st.lists(words, max_size=5))
    documents = data.draw(st.lists(words, max_size=4))
    contamination = Contamination([(str(i), row) for i, row in enumerate(rows)], ngram)
    for document, hit in zip(documents, contamination.find_each(documents), strict=True):
        parts = document.split()
        grams = [parts[i : i + ngram] for i in range(len(parts) - ngram + 1)]
        expected = {
            str(rows.index(row))
            for row in rows
            if any(row.split()[i : i + ngram] in grams for i in range(len(row.split()) - ngram + 1))
        }
        assert set(hit.references if hit else ()) == expected


def test_it_says_the_same_after_pickling_one_by_one_and_with_words_at_hand():
    planted = references("en", 24) + references("zh", 24)
    contamination = Contamination(planted)
    texts = [text for _, text in planted] + ["", "clean", "干净"]
    hits = contamination.find_each(texts)
    assert [contamination.find(text) for text in texts] == hits
    assert contamination.find_each(texts, Words.of(texts)) == hits
    assert pickle.loads(pickle.dumps(contamination)).find_each(texts) == hits
    assert np.sum([hit is None for hit in hits]) == 3


def test_without_references_nothing_is_found():
    assert Contamination([]).find_each(["some text", ""]) == [None, None]
    assert normalised("some text") == ["some", "text"]
