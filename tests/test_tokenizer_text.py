"""Plain text: nothing is lost, and nothing typed becomes a special token."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_texts import english
from fourstage.errors import InputError
from fourstage.tokenizer import Tokenizer, train_tokenizer

TOKENIZER = train_tokenizer([english(300)], 400)
SPECIALS = [
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|reward|>",
    "<|pad|>",
]
typed = st.lists(st.one_of(st.text(), st.sampled_from(SPECIALS))).map("".join)


@given(typed)
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.binary())
def test_any_bytes_come_back(data: bytes) -> None:
    assert TOKENIZER.decode_bytes(TOKENIZER.encode_bytes(data)) == data


@given(typed)
def test_typed_special_tokens_never_become_special(text: str) -> None:
    assert not TOKENIZER.special_ids & set(TOKENIZER.encode(text))


@given(st.lists(typed, max_size=5))
def test_a_batch_is_encoded_as_its_texts_are(texts: list[str]) -> None:
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


def test_lone_surrogates_are_encoded_as_bytes() -> None:
    assert TOKENIZER.decode_bytes(TOKENIZER.encode("a\ud800")) == b"a\xed\xa0\x80"
    assert TOKENIZER.encode_batch(["a\ud800", "b"])[1] == TOKENIZER.encode("b")


def test_digits_stand_alone() -> None:
    ids = TOKENIZER.encode("at 12 and 2024")
    pieces = [TOKENIZER.decode([i]) for i in ids]
    assert all(sum(c.isdigit() for c in piece) <= 1 for piece in pieces)


def test_special_tokens_come_first_and_are_distinct() -> None:
    ids = [TOKENIZER.backend.token_to_id(name) for name in SPECIALS]
    assert ids == list(range(len(SPECIALS)))
    assert TOKENIZER.pad not in (*TOKENIZER.stop_ids, TOKENIZER.reward)


def test_every_byte_has_a_token_whatever_the_text_was() -> None:
    small = train_tokenizer(["aaaa"], 263)
    assert small.vocab_size == 263
    assert small.decode(small.encode("日本 \x00 🎉")) == "日本 \x00 🎉"


def test_a_vocabulary_too_large_for_the_text_is_refused_with_the_size_it_allows() -> None:
    with pytest.raises(InputError, match=r"vocab_size=5000 is too large.*gives \d+ tokens"):
        train_tokenizer([english(5)], 5000)
    assert train_tokenizer([english(5)], 5000, exact=False).vocab_size < 5000


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="263"):
        train_tokenizer(["text"], 200)


def test_training_gives_the_same_vocabulary_in_another_process() -> None:
    code = (
        "from data_texts import english\n"
        "from fourstage.tokenizer import train_tokenizer\n"
        "print(train_tokenizer([english(50)], 350).backend.to_str())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(p for p in sys.path if p), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and outputs.pop()


def test_a_saved_tokenizer_loads_with_the_same_ids(tmp_path) -> None:
    TOKENIZER.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode("Ada <|user|> 12") == TOKENIZER.encode("Ada <|user|> 12")
    assert again.added == ()
    assert again.vocab_size == TOKENIZER.vocab_size
    again.save(tmp_path / "again")
    for file in tmp_path.glob("*.json"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
