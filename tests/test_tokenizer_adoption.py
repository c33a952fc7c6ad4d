"""Tokenizers from elsewhere: the same ids as before, whatever form they have and come with."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken

import tokenizer_vocabularies as vocabularies
from data_texts import english
from fourstage.errors import InputError
from fourstage.tokenizer import Tokenizer

STYLES = [
    vocabularies.gpt2,
    vocabularies.llama3,
    vocabularies.qwen2,
    vocabularies.llama2,
    vocabularies.unigram,
]
TEXTS = ["Ada mended the lantern at 12.", " two  spaces\n\nnew", "漢字 🎉 é", "x<tool_call>y", ""]
CHAT = [
    {"role": "user", "content": "Where is 12?"},
    {"role": "assistant", "content": "Near the harbour."},
]


@pytest.mark.parametrize("style", STYLES)
def test_transformers_gives_the_same_ids_before_and_after_adoption(style, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    style().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    adopted = Tokenizer.load(tmp_path)
    adopted.save(tmp_path / "own")
    for folder in (tmp_path, tmp_path / "own"):
        other = transformers.AutoTokenizer.from_pretrained(folder)
        for text in TEXTS:
            assert other(text, add_special_tokens=False)["input_ids"] == adopted.encode(text)
    rendered = other.apply_chat_template(CHAT, tokenize=False)
    assert adopted.decode(adopted.chat_prompt(CHAT), skip_special=False).startswith(rendered[:8])


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_adopted_tokenizer_loads_with_the_same_ids_and_turns(style, tmp_path) -> None:
    style().save(str(tmp_path / "tokenizer.json"))
    adopted = Tokenizer.load(tmp_path)
    adopted.save(tmp_path / "own")
    again = Tokenizer.load(tmp_path / "own")
    assert again.added == ()
    assert again.encode_batch(TEXTS) == adopted.encode_batch(TEXTS)
    assert again.chat_prompt(CHAT) == adopted.chat_prompt(CHAT)
    assert again.stop_ids == adopted.stop_ids


@pytest.mark.parametrize("style", STYLES)
def test_english_comes_back_from_every_form(style) -> None:
    tokenizer = Tokenizer(style())
    text = english(2).replace("\n\n", " ")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_come_back_from_pieces_with_marks_for_spaces() -> None:
    tokenizer = Tokenizer(vocabularies.llama2())
    assert tokenizer.decode_bytes(tokenizer.encode("Ada 漢")) == " Ada 漢".encode()
    assert tokenizer.encode_bytes(b"\xff") == [tokenizer.backend.token_to_id("<0xFF>")]


def test_added_tokens_stand_for_their_own_names_among_bytes() -> None:
    backend = vocabularies.gpt2()
    backend.add_tokens([AddedToken("<｜tool｜>", special=False)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode_bytes(tokenizer.encode("a<｜tool｜>b")) == "a<｜tool｜>b".encode()


def _save(folder, backend, **others) -> None:
    backend.save(str(folder / "tokenizer.json"))
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def _plain_llama2():
    """Its special tokens are in the vocabulary, but nothing says that they are special."""
    described = json.loads(vocabularies.llama2().to_str())
    described["added_tokens"] = []
    return vocabularies.Backend.from_str(json.dumps(described))


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
def test_tokens_named_beside_a_tokenizer_are_special(name: str, tmp_path) -> None:
    roles = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    _save(tmp_path, _plain_llama2(), **{name: {**roles, "unk_token": None}})
    adopted = Tokenizer.load(tmp_path)
    assert (adopted.start_of_text, adopted.end_of_text) == (1, 2)
    assert not {1, 2} & set(adopted.encode("typed </s> and <s>"))


def test_the_configuration_is_heard_before_the_map(tmp_path) -> None:
    _save(
        tmp_path,
        _plain_llama2(),
        tokenizer_config={"eos_token": "</s>"},
        special_tokens_map={"eos_token": "<s>", "additional_special_tokens": ["<|extra|>"]},
    )
    adopted = Tokenizer.load(tmp_path)
    assert adopted.end_of_text == 2
    assert adopted.backend.token_to_id("<|extra|>") in adopted.special_ids


def test_listed_added_tokens_are_special_in_the_order_of_their_ids(tmp_path) -> None:
    size = vocabularies.llama2().get_vocab_size()
    listed = {
        str(size + 1): {"content": "<|second|>", "special": True},
        str(size): {"content": "<|first|>", "special": True},
    }
    _save(tmp_path, _plain_llama2(), tokenizer_config={"added_tokens_decoder": listed})
    adopted = Tokenizer.load(tmp_path)
    assert adopted.backend.token_to_id("<|first|>") == size
    assert adopted.backend.token_to_id("<|second|>") == size + 1


def test_a_tokenizer_that_loses_text_by_design_is_refused(tmp_path) -> None:
    _save(tmp_path, vocabularies.wordpiece())
    with pytest.raises(InputError, match=r"WordPiece.*does not come back.*tokenizer\.path"):
        Tokenizer.load(tmp_path)


def test_other_forms_of_a_vocabulary_are_named_with_what_converts_them(tmp_path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(InputError, match=r"tokenizer\.model.*save_pretrained"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_damaged_files_beside_it_are_named(content: str, tmp_path) -> None:
    _save(tmp_path, vocabularies.gpt2())
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not (JSON|a JSON object)"):
        Tokenizer.load(tmp_path)
