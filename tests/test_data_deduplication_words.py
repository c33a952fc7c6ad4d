"""Words, their hashes, and the sentences they stand in."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.deduplication import Words, normalised
from fourstage.data.deduplication.sentences import Sentences

# Characters that fold to several, that compose with their neighbours, that vanish, that are words.
_ODD = "aé's ’“…½ﬁİßǰ的ｱﾞ가가\u0301\u200d\ufe0f\n.ั，"
texts = st.text(st.one_of(st.characters(), st.sampled_from(_ODD)), max_size=30)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a  DON’T-care\tcase!", ["its", "a", "dont", "care", "case"]),
        ("Ｆｕｌｌ　ｗｉｄｔｈ，１２３", ["full", "width", "123"]),
        ("今天天气GPT4好。", ["今", "天", "天", "气", "gpt4", "好"]),
        ("カタ ｶﾞ ひら", ["カ", "タ", "ガ", "ひ", "ら"]),
        ("Straße STRASSE soft\u00adhyphen", ["strasse", "strasse", "softhyphen"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("?! — ...", []),
    ],
)
def test_words_are_what_case_spacing_and_punctuation_leave(text: str, words: list[str]):
    assert normalised(text) == words


@given(st.lists(texts, max_size=4))
def test_hashes_are_those_of_the_words(documents: list[str]):
    words = Words.of(documents)
    lists = [normalised(text) for text in documents]
    assert words.counts.tolist() == [len(each) for each in lists]
    names: dict[str, int] = {}
    for word, hash_ in zip(chain(*lists), words.hashes.tolist(), strict=True):
        assert names.setdefault(word, hash_) == hash_
    assert len(set(names.values())) == len(names)


@given(st.lists(texts, max_size=4))
def test_a_word_begins_at_its_place(documents: list[str]):
    words = Words.of(documents)
    for number, text in enumerate(documents):
        places = words.places[words.offsets[number] : words.offsets[number + 1]].tolist()
        assert places == sorted(places)
        assert all(0 <= place < len(text) for place in places)
        if text.isascii():
            firsts = [word[0] for word in normalised(text)]
            assert [text[place].lower() for place in places] == firsts


def test_a_long_text_has_the_words_of_its_parts():
    part = "Many words, 的确 很多, in a row. "
    words = Words.of([part * 20_000, part])
    assert words.counts.tolist() == [20_000 * len(normalised(part)), len(normalised(part))]
    assert np.array_equal(words.hashes, np.tile(words.hashes[-len(normalised(part)) :], 20_001))


@given(st.lists(texts, min_size=1, max_size=4), st.integers(1, 5))
def test_runs_of_equal_words_have_equal_hashes(documents: list[str], size: int):
    hashes, offsets = Words.of(documents).ngrams(size)
    seen: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(documents):
        words = normalised(text)
        runs = [tuple(words[i : i + size]) for i in range(max(len(words) - size + 1, 1)) if words]
        found = hashes[offsets[number] : offsets[number + 1]].tolist()
        for run, hash_ in zip(runs, found, strict=True):
            assert seen.setdefault(run, hash_) == hash_
    assert len(set(seen.values())) == len(seen)


def test_hashes_are_the_same_in_every_process():
    code = (
        "from fourstage.data.deduplication import MinHasher, Words;"
        "print(Words.of(['Old friends, 老朋友']).hashes.tolist(),"
        "MinHasher().signatures(['Old friends, 老朋友']).tolist())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! “Three?” Four", ["One.", " Two!", " “Three?”", " Four"]),
        ("3.14 is no end.", ["3.14 is no end."]),
        ("他来了。“真的吗？”是。", ["他来了。", "“真的吗？”", "是。"]),
        ("a line\nanother", ["a line\n", "another"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, sentences: list[str]):
    found = Sentences.of([text], Words.of([text]))
    assert [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)] == sentences


@given(st.lists(texts, min_size=1, max_size=4))
def test_sentences_hold_all_of_each_text_and_all_its_words(documents: list[str]):
    words = Words.of(documents)
    found = Sentences.of(documents, words)
    joined = [""] * len(documents)
    for number, start, end in zip(found.documents, found.starts, found.ends, strict=True):
        joined[number] += documents[number][start:end]
    assert joined == documents
    counts = np.bincount(found.documents, np.diff(found.offsets), len(documents))
    assert counts.tolist() == words.counts.tolist()
