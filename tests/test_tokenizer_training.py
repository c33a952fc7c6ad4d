"""Training: the rule asked for, every text heard, memory bounded."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from data_texts import chinese, english
from fourstage.errors import InputError
from fourstage.planning.rules import vocabulary_size
from fourstage.tokenizer import train_tokenizer
from fourstage.tokenizer.bytelevel import CHARACTER_TO_BYTE
from fourstage.tokenizer.sampling import training_sample
from fourstage.tokenizer.training import SPECIALS

TEXTS = [english(100), chinese(100)]


def _pieces(split: str, digits: int, text: str) -> list[str]:
    cut = train_tokenizer(["a"], 263, split=split, digits=digits).backend.pre_tokenizer
    written = (piece for piece, _ in cut.pre_tokenize_str(text))
    return [bytes(CHARACTER_TO_BYTE[c] for c in piece).decode() for piece in written]


def test_each_rule_cuts_text_its_own_way() -> None:
    text = "I'LL go（明月）,123 x"
    assert _pieces("gpt2", 1, text) == [
        "I", "'", "LL", " go", "（", "明月", "）,", "1", "2", "3", " x",
    ]  # fmt: skip
    assert _pieces("gpt4", 1, text) == [
        "I", "'LL", " go", "（明月", "）,", "1", "2", "3", " x",
    ]  # fmt: skip
    assert _pieces("gpt4", 3, text)[-2:] == ["123", " x"]
    assert _pieces("chinese", 3, text) == ["I", "'LL", " go", "（", "明月", "）,", "123", " x"]


def test_the_chinese_rule_keeps_clauses_and_scripts_apart() -> None:
    assert _pieces("chinese", 1, "春风，GPU上的明月。\n") == [
        "春风", "，GPU", "上的明月", "。\n",
    ]  # fmt: skip
    assert _pieces("chinese", 1, "明" * 20) == ["明" * 8, "明" * 8, "明" * 4]


@given(st.text())
def test_the_pieces_of_every_rule_are_the_text(text: str) -> None:
    for split, digits in itertools.product(("gpt2", "gpt4", "chinese"), (1, 3)):
        assert "".join(_pieces(split, digits, text)) == text


def test_the_rule_of_gpt2_gives_the_vocabulary_it_always_gave() -> None:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    ours = train_tokenizer(TEXTS, 500, split="gpt2", digits=1)
    assert ours.backend.get_vocab() == backend.get_vocab()
    assert [ours.encode(text) for text in TEXTS] == [backend.encode(text).ids for text in TEXTS]


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(InputError, match=r"tokenizer\.split=gpt5: write one of gpt2, gpt4, chin"):
        train_tokenizer(TEXTS, 500, split="gpt5")
    with pytest.raises(InputError, match=r"tokenizer\.digits=2: write 1 or 3"):
        train_tokenizer(TEXTS, 500, digits=2)


def test_texts_are_read_one_at_a_time_and_once() -> None:
    read = iter([english(30), chinese(30)])
    assert train_tokenizer(read, 400).vocab_size == 400
    assert next(read, None) is None


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_few_texts_are_all_counted(texts: list[str]) -> None:
    assert sorted(training_sample(texts)) == sorted(texts)


def test_of_many_texts_a_sample_is_drawn_from_all() -> None:
    texts = [f"{number} " * 20 for number in range(10_000)]
    drawn = list(training_sample(iter(texts), most_bytes=100_000))
    assert 90_000 < sum(map(len, drawn)) <= 100_000
    places = sorted(int(text.split()[0]) for text in drawn)
    thirds = [sum(third * 3334 <= p < third * 3334 + 3334 for p in places) for third in range(3)]
    assert min(thirds) > 0.8 * max(thirds)
    assert drawn == list(training_sample(texts, most_bytes=100_000))


def test_texts_whose_words_never_come_again_are_counted_on_fewer() -> None:
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefgh", k=9)) for _ in range(5000)]
    texts = [" ".join(words[start : start + 10]) for start in range(0, 5000, 10)]
    drawn = list(training_sample(texts, most_piece_bytes=10_000))
    assert 90 <= len(drawn) <= 110
    again = [texts[0]] * 500
    assert len(list(training_sample(again, most_piece_bytes=10_000))) == 500


def test_very_long_texts_are_drawn_in_parts() -> None:
    line = "Ada mended the lantern.\n"
    text = line * 100_000
    drawn = list(training_sample([text], most_bytes=1_500_000))
    assert len(drawn) > 1 and sum(map(len, drawn)) <= 1_500_000
    assert all(len(part) <= 1_000_000 for part in drawn)
    assert all(part.startswith("Ada") and part.endswith(".\n") for part in drawn)


@pytest.mark.parametrize("run", ["a", "茶", "=", "_", " ", "\n", "acgt"])
def test_training_takes_no_longer_for_letters_without_an_end(run: str) -> None:
    text = f"Ada read {(run * 300_000)[:300_000]} aloud."
    drawn = list(training_sample([text]))
    assert "".join(drawn) == text
    assert max(map(len, drawn)) < 2100
    # Pieces of 300,000 characters would take minutes.
    assert train_tokenizer([text, english(30)], 400).vocab_size == 400


def test_lone_surrogates_do_not_stop_the_training() -> None:
    assert train_tokenizer(["a\ud800b", english(10)], 300).vocab_size == 300


@pytest.mark.parametrize(
    ("params", "corpus_bytes", "least", "most"),
    [
        (1e6, 5e5, 640, 704),
        (1e6, 1e9, 832, 896),
        (125e6, 1e7, 3000, 3300),
        (125e6, 1e12, 32000, 32000),
        (7e9, 1e9, 31000, 32000),
        (7e9, 1e12, 38000, 42000),
        (1e9, 100, 320, 320),
    ],
)
def test_the_vocabulary_fits_the_model_and_the_text(params, corpus_bytes, least, most) -> None:
    size, rule = vocabulary_size(params, corpus_bytes)
    assert least <= size <= most and size % 64 == 0
    assert ("root" in rule) == (size < vocabulary_size(params).value)
