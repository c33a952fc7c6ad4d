"""Conversations: built turn by turn, masked by construction, the same in transformers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from data_texts import english
from fourstage.errors import InputError
from fourstage.tokenizer import Tokenizer, train_tokenizer

TOKENIZER = train_tokenizer([english(300)], 400)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is 12 <b>?"},
    {"role": "assistant", "content": "Near the harbour.\n"},
    {"role": "user", "content": "  你好 "},
    {"role": "assistant", "content": ""},
]
contents = st.text(max_size=20) | st.sampled_from(["<|end|>", "<|assistant|>", "<|reward|>"])
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": contents}),
    min_size=1,
    max_size=4,
)


def _rendered(tokens, tokenizer: Tokenizer = TOKENIZER) -> str:
    return tokenizer.decode(tokens, skip_special=False)


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    assert _rendered(TOKENIZER.chat_prompt("Hi")) == "<|user|>Hi<|end|><|assistant|>"


def test_answers_and_their_ends_are_trained_and_nothing_else() -> None:
    example = TOKENIZER.chat_example(CHAT)
    assert _rendered(example.tokens[example.loss_mask]) == "Near the harbour.\n<|end|><|end|>"


@given(turns)
def test_a_conversation_continues_its_prompt_token_by_token(messages) -> None:
    row = TOKENIZER.chat_example(messages).tokens.tolist()
    prompt = TOKENIZER.chat_prompt(messages[:-1])
    assert row[: len(prompt) - 1] == prompt[:-1]


@given(turns)
def test_content_never_opens_or_ends_a_turn(messages) -> None:
    ids = TOKENIZER.chat_example(messages).tokens.tolist()
    specials = [i for i in ids if i in TOKENIZER.special_ids]
    opened = {"user": TOKENIZER.user, "assistant": TOKENIZER.assistant}
    wanted = [i for m in messages for i in (opened[m["role"]], TOKENIZER.end_of_turn)]
    assert specials == wanted


def test_a_reward_row_ends_in_its_only_reward_token() -> None:
    row = TOKENIZER.reward_row(CHAT)
    assert row[-1] == TOKENIZER.reward and row.count(TOKENIZER.reward) == 1
    example = TOKENIZER.reward_example(CHAT)
    assert example.tokens.tolist() == row and not example.loss_mask[-1]


def test_a_document_stands_between_its_start_and_its_end() -> None:
    tokens = TOKENIZER.document("Ada").tokens.tolist()
    assert tokens == [TOKENIZER.end_of_text, *TOKENIZER.encode("Ada"), TOKENIZER.end_of_text]


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(InputError, match=r"'robot'.*system, user, assistant"):
        TOKENIZER.chat_prompt([{"role": "robot", "content": "x"}])


def _ids(rendered) -> list[int]:
    return rendered if isinstance(rendered, list) else rendered["input_ids"]


def test_transformers_gives_the_same_ids_and_renders_the_same_chat(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Ada mended 12 lanterns.", "  你好\n\n🎉 x", ""):
        assert other(text, add_special_tokens=False)["input_ids"] == TOKENIZER.encode(text)
        assert other(text)["input_ids"] == TOKENIZER.encode(text)
        assert other.decode(TOKENIZER.encode(text)) == text
    for length in range(1, len(CHAT) + 1):
        chat = CHAT[:length]
        assert _ids(other.apply_chat_template(chat)) == TOKENIZER.chat_example(chat).tokens.tolist()
        prompted = other.apply_chat_template(chat, add_generation_prompt=True)
        assert _ids(prompted) == TOKENIZER.chat_prompt(chat)
    assert other.pad_token_id == TOKENIZER.pad
    assert other.eos_token_id == TOKENIZER.end_of_text
    assert len(other) == TOKENIZER.vocab_size


def _elsewhere(folder, specials: list[str], **config: str) -> None:
    """A byte-level tokenizer folder as another project would leave it."""
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(_bytes())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _bytes() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_an_adopted_tokenizer_keeps_its_ids_and_gains_what_it_lacks(tmp_path) -> None:
    _elsewhere(tmp_path, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="</s>")
    adopted = Tokenizer.load(tmp_path)
    assert (adopted.start_of_text, adopted.end_of_text) == (256, 257)
    assert adopted.pad not in adopted.stop_ids
    assert set(adopted.added) == {
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
        "<|reward|>",
        "<|pad|>",
    }
    assert adopted.document("a").tokens.tolist() == [256, *adopted.encode("a"), 257]
    adopted.save(tmp_path / "own")
    again = Tokenizer.load(tmp_path / "own")
    assert again.added == () and again.chat_prompt(CHAT) == adopted.chat_prompt(CHAT)


def test_a_chatml_tokenizer_keeps_its_own_turns(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    _elsewhere(tmp_path, specials, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    adopted = Tokenizer.load(tmp_path)
    assert adopted.chat.name == "chatml"
    assert adopted.end_of_text == 256 and adopted.end_of_turn == 258
    assert set(adopted.added) == {"<|reward|>", "<|pad|>"}
    example = adopted.chat_example(CHAT[:3])
    assert _rendered(example.tokens, adopted).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n"
    )
    trained = _rendered(example.tokens[example.loss_mask], adopted)
    assert trained == "Near the harbour.\n<|im_end|>"
    adopted.save(tmp_path / "own")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "own")
    assert _ids(other.apply_chat_template(CHAT[:3])) == example.tokens.tolist()


def test_what_is_no_tokenizer_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_an_answer_that_is_not_trained_is_read_only() -> None:
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Wrong."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Right."},
    ]
    all_answers = TOKENIZER.chat_example(messages)
    last = TOKENIZER.chat_example(messages, (True, False, True, True))
    assert last.tokens.tolist() == all_answers.tokens.tolist()
    trained = TOKENIZER.decode(last.tokens[last.trained()], skip_special=True)
    assert trained == "Right." and all_answers.trained().sum() > last.trained().sum()
