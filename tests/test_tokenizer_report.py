"""The report of a vocabulary: true numbers, no downloads, and what it loses."""

from __future__ import annotations

import base64
import hashlib
import io

import pytest
from rich.console import Console

import tokenizer_vocabularies as vocabularies
from data_texts import chinese, english
from fourstage.reporting.vocabulary import print_tokenizer_report
from fourstage.tokenizer import Tokenizer, train_tokenizer
from fourstage.tokenizer import report as report_module
from fourstage.tokenizer.report import first_lost, tokenizer_report

OWN = train_tokenizer([english(200), chinese(100)], 450, split="chinese")


@pytest.fixture(autouse=True)
def no_caches(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


@pytest.fixture
def few_characters(monkeypatch) -> None:
    """The round trip of every character takes seconds."""
    monkeypatch.setattr(report_module, "_every_character", lambda: iter(["abc", "é漢🎉"]))


@pytest.mark.usefixtures("few_characters")
def test_the_numbers_are_those_of_the_texts() -> None:
    english_text, chinese_text = "Ada mended it.", "春风，明月"
    report = tokenizer_report(OWN, {"tales": [english_text] * 300, "zh": iter([chinese_text])})
    tales = report["samples"]["tales"]
    tokens = len(OWN.encode(english_text))
    assert tales["texts"] == 300 and tales["tokens"] == 300 * tokens
    assert tales["bytes_per_token"] == len(english_text) / tokens
    assert tales["tokens_per_word"] == tokens / 3
    assert report["samples"]["zh"]["words"] == 4
    used = {*OWN.encode(english_text), *OWN.encode(chinese_text)}
    assert report["unused"] == OWN.vocab_size - len(OWN.special_ids) - len(used)
    assert report["unused_share"] == report["unused"] / (OWN.vocab_size - len(OWN.special_ids))


@pytest.mark.usefixtures("few_characters")
def test_the_longest_tokens_come_first() -> None:
    longest = tokenizer_report(OWN, {})["longest"]
    assert [len(text) for text in longest] == sorted(map(len, longest), reverse=True)
    assert len(longest[0]) == max(len(OWN.token_text(i)) for i in range(7, OWN.vocab_size))


@pytest.mark.usefixtures("few_characters")
def test_vocabularies_that_are_not_here_are_named_and_not_fetched() -> None:
    report = tokenizer_report(OWN, {"x": ["a"]})
    assert report["not_at_hand"] == ["GPT-2", "cl100k", "Llama 2", "Llama 3"]
    assert report["samples"]["x"]["others"] == {}


@pytest.mark.usefixtures("few_characters")
def test_given_vocabularies_are_compared(tmp_path) -> None:
    vocabularies.llama3().save(str(tmp_path / "tokenizer.json"))
    text = english(3)
    report = tokenizer_report(OWN, {"en": [text]}, {"Llama 3": tmp_path})
    count = len(Tokenizer.load(tmp_path).encode(text))
    assert report["samples"]["en"]["others"] == {"Llama 3": len(text) / count}
    assert "Llama 3" not in report["not_at_hand"]


@pytest.mark.usefixtures("few_characters")
def test_a_vocabulary_in_the_cache_of_tiktoken_is_compared(tmp_path) -> None:
    pytest.importorskip("tiktoken")
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the"]
    lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens))
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    (tmp_path / "tiktoken").mkdir()
    path = tmp_path / "tiktoken" / hashlib.sha1(url.encode()).hexdigest()
    path.write_text("".join(lines))
    report = tokenizer_report(OWN, {"en": ["the the"]})
    assert report["samples"]["en"]["others"] == {"cl100k": 7 / 2}


def test_byte_level_vocabularies_lose_nothing_in_any_plane() -> None:
    assert first_lost(OWN) is None
    assert first_lost(Tokenizer(vocabularies.llama3())) is None


def test_what_a_normalizing_vocabulary_loses_is_named() -> None:
    # U+0340 is the first character that NFC replaces for good.
    assert first_lost(Tokenizer(vocabularies.qwen2())) == "\u0340"


def test_white_space_lost_by_marks_is_named() -> None:
    assert first_lost(Tokenizer(vocabularies.unigram())) is not None
    report = tokenizer_report(Tokenizer(vocabularies.unigram(byte_fallback=False)), {})
    assert report["round_trip"] is False and report["lost"] is not None


@pytest.mark.usefixtures("few_characters")
def test_the_printed_report_says_what_was_found() -> None:
    report = tokenizer_report(OWN, {"tales": [english(5)], "empty": []})
    out = io.StringIO()
    print_tokenizer_report(report, Console(file=out, width=120))
    printed = out.getvalue()
    assert "tales" in printed and "bytes a token" in printed
    assert "not at hand, so not compared: GPT-2, cl100k, Llama 2, Llama 3" in printed
    assert "every text comes back" in printed
    out.truncate(0)
    print_tokenizer_report({**report, "lost": "\u0340"}, Console(file=out, width=120))
    assert "text is lost, first U+0340" in out.getvalue()
