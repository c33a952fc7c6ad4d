"""What a change of vocabulary promises: what was learnt of a token is kept under its next name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from fourstage.interchange import load_model, save_model, with_vocabulary
from fourstage.interchange.vocabulary import pieces_of, with_rows, with_tokenizer
from fourstage.tokenizer import Tokenizer
from tiny_models import Letters, logits_of, tiny_model
from tokenizer_vocabularies import gpt2, llama2, qwen2, unigram

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def gpt() -> Tokenizer:
    return Tokenizer(gpt2())


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return Tokenizer(qwen2())


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    return Tokenizer(llama2())


def model_for(tokenizer: Tokenizer, head: str = "language", **changes):
    return tiny_model(head, vocab_size=tokenizer.vocab_size, **changes)


def copy_of(tokenizer: Tokenizer) -> Backend:
    return Backend.from_str(tokenizer.backend.to_str())


@pytest.mark.parametrize("tied", [True, False])
def test_another_vocabulary_starts_from_equal_tokens_and_from_means_of_pieces(tied, gpt, qwen):
    model = model_for(gpt, tie_embeddings=tied)
    changed, said = with_tokenizer(model, gpt, qwen)
    assert changed.config.vocab_size == qwen.vocab_size
    old, new = model.state_dict(), changed.state_dict()
    kept = made = 0
    for token in range(qwen.vocab_size):
        if token in qwen.special_ids:
            continue
        data = qwen.decode_bytes([token])
        pieces = gpt.encode_bytes(data)
        twin = gpt.backend.token_to_id(qwen.backend.id_to_token(token))
        kept, made = kept + (twin is not None), made + (twin is None and len(pieces) > 1)
        rows = pieces if twin is None else [twin]
        for table in TABLES[: 1 if tied else 2]:
            expected = old[table][rows].mean(dim=0)
            assert torch.allclose(new[table][token], expected, atol=1e-6), (token, data)
    assert kept > 300 and made > 20
    assert f"to {qwen.vocab_size:,} tokens" in said
    for name in old.keys() - set(TABLES):
        assert torch.equal(old[name], new[name])


def test_special_tokens_keep_their_role_under_another_name(gpt, llama):
    model = model_for(gpt)
    changed, _ = with_tokenizer(model, gpt, llama)
    old, new = model.state_dict()[TABLES[0]], changed.state_dict()[TABLES[0]]
    assert llama.backend.id_to_token(llama.end_of_text) == "</s>"
    assert torch.equal(new[llama.end_of_text], old[gpt.end_of_text])
    assert torch.equal(new[llama.reward], old[gpt.reward])


def test_an_added_word_starts_as_the_mean_of_its_pieces_and_nothing_else_changes(gpt):
    backend = copy_of(gpt)
    word = "unbelievable cat"
    backend.add_tokens([AddedToken(word, special=False, normalized=False)])
    longer = Tokenizer(backend)
    model = model_for(gpt)
    changed, _ = with_tokenizer(model, gpt, longer)
    old, new = model.state_dict()[TABLES[0]], changed.state_dict()[TABLES[0]]
    pieces = gpt.encode(word)
    assert len(pieces) > 2 and longer.vocab_size == gpt.vocab_size + 1
    assert torch.equal(new[:-1], old)
    assert torch.allclose(new[-1], old[pieces].mean(dim=0), atol=1e-6)


def test_marks_of_spaces_and_characters_of_bytes_are_the_same_text(llama, gpt):
    pieces = pieces_of(llama, gpt, gpt.vocab_size)
    the = llama.backend.token_to_id("▁the")
    assert gpt.decode_bytes(pieces[the]) == b" the"
    assert gpt.decode_bytes(pieces[llama.backend.token_to_id("<0x41>")]) == b"A"
    # Back again, without the space that SentencePiece puts in front of every text.
    back = pieces_of(gpt, llama, llama.vocab_size)
    for text in (b" the", b"e", b"ne"):
        token = gpt.encode_bytes(text)[0]
        assert llama.decode_bytes(back[token]) == gpt.decode_bytes([token])


@pytest.mark.parametrize("fallback", [True, False])
def test_tokens_that_the_old_vocabulary_cannot_write_start_as_the_mean_of_all(fallback, gpt):
    old = Tokenizer(unigram(fallback))
    model = model_for(old)
    changed, _ = with_tokenizer(model, old, gpt)
    token = gpt.encode_bytes(b"\xff")[0]
    table, rows = model.state_dict()[TABLES[0]], changed.state_dict()[TABLES[0]]
    if fallback:
        assert torch.equal(rows[token], table[old.backend.token_to_id("<0xFF>")])
    else:
        near = (rows[token] - table.mean(dim=0)).abs() / table.std(dim=0)
        assert near.max() < 0.06 and near.max() > 0


def test_the_same_vocabulary_changes_nothing(gpt):
    model = model_for(gpt)
    changed, _ = with_tokenizer(model, gpt, Tokenizer(copy_of(gpt)))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, changed.state_dict()[name])


@pytest.mark.parametrize("head", ["language", "scalar"])
def test_a_change_is_a_function_of_the_seed_and_saves_like_any_model(head, gpt, tmp_path):
    # Without tokens for bytes, so that some of the next vocabulary have no pieces.
    old = Tokenizer(unigram(byte_fallback=False))
    model = model_for(old, head)
    model.reward_mean, model.reward_std = 0.5, 2.0
    first, _ = with_tokenizer(model, old, gpt, seed=1)
    again, _ = with_tokenizer(model, old, gpt, seed=1)
    other, _ = with_tokenizer(model, old, gpt, seed=2)
    tables = [each.state_dict()[TABLES[0]] for each in (first, again, other)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert (first.reward_mean, first.reward_std, first.head) == (0.5, 2.0, head)
    save_model(tmp_path / "model", first, Letters(), card="# Changed")
    assert load_model(tmp_path / "model").config == first.config


def test_a_model_without_rows_for_what_its_tokenizer_added_reads_none(gpt):
    # A folder from elsewhere: its tokenizer got our turns when it was opened, its model did not.
    rows = gpt.vocab_size - len(gpt.added)
    model = tiny_model(vocab_size=rows)
    assert gpt.added
    changed, _ = with_tokenizer(model, gpt, Tokenizer(copy_of(gpt)))
    table = changed.state_dict()[TABLES[0]]
    assert torch.equal(table, with_vocabulary(model, gpt.vocab_size).state_dict()[TABLES[0]])


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=12),
    seed=st.integers(0, 3),
)
def test_a_row_is_the_mean_of_its_pieces_whatever_stands_around_it(pieces, seed):
    model = tiny_model(vocab_size=10, layers=1)
    table = model.state_dict()[TABLES[0]]
    rows = with_rows(model, pieces, seed).state_dict()[TABLES[0]]
    assert rows.shape == (len(pieces), table.shape[1])
    for row, each in zip(rows, pieces, strict=True):
        expected = table[each].mean(dim=0) if each else table.mean(dim=0)
        noise = 0.0 if each else 0.06 * float(table.std(dim=0).max())
        assert (row - expected).abs().max() <= 1e-6 + noise


def test_logits_of_kept_tokens_are_as_they_were(gpt, qwen):
    model = model_for(gpt)
    changed, _ = with_tokenizer(model, gpt, qwen)
    text = "the and"
    shared = [(q, g) for q, (g, *rest) in enumerate(pieces_of(qwen, gpt, 10**6)) if not rest]
    before = logits_of(model, gpt.encode(text))
    same = [gpt.backend.id_to_token(i) for i in gpt.encode(text)]
    after = logits_of(changed, [qwen.backend.token_to_id(name) for name in same])
    ours, theirs = map(list, zip(*shared, strict=True))
    assert torch.allclose(after[:, ours], before[:, theirs], atol=1e-5)
