"""Fast batches: the ids of `tokenizers`, whatever the text and wherever the vocabulary is from."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

import tokenizer_vocabularies as vocabularies
from fourstage.tokenizer import Tokenizer, batches, train_tokenizer
from fourstage.tokenizer.agreement import outside
from fourstage.tokenizer.batches import BatchEncoder
from fourstage.tokenizer.bytelevel import BYTE_TO_CHARACTER
from fourstage.tokenizer.fast import fast_encoder, proven_ranks
from fourstage.tokenizer.splitting import pre_tokenizer, twin_of

tiktoken = pytest.importorskip("tiktoken")

RULES = [(split, digits) for split in ("gpt2", "gpt4", "chinese") for digits in (1, 3)]
# As the tokenizer.json of GPT-4o, Llama 4 and gpt-oss has it.
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
STYLES = [vocabularies.gpt2, vocabularies.llama3, vocabularies.qwen2]
texts = st.text(vocabularies.KINDS, max_size=30) | st.text(max_size=20)


@pytest.fixture(autouse=True)
def proven_at_once(monkeypatch) -> None:
    """As if each batch were large."""
    monkeypatch.setattr(batches, "_WORTH_A_PROOF", 0)


def _ids(backend: Backend, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _cut(split: str, digits: int | None) -> pre_tokenizers.PreTokenizer:
    if digits is not None:
        return pre_tokenizer(split, digits)
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_pattern = pre_tokenizers.Split(Regex(O200K), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([by_pattern, as_bytes])


@pytest.mark.parametrize(("split", "digits"), [*RULES, ("gpt2", None), ("o200k", None)])
def test_both_engines_cut_every_row_of_kinds_alike(split: str, digits: int | None) -> None:
    """All rows of three kinds of character, and long rows at random."""
    backend = vocabularies.all_pairs_of_bytes(_cut(split, digits))
    fast = fast_encoder(backend)
    assert fast is not None
    rows = ["".join(row) for row in itertools.product(vocabularies.KINDS, repeat=3)]
    rows += [vocabularies.kinds_at_random(50, seed) for seed in range(2000)]
    assert all(map(fast.knows, rows))
    ids, lengths = fast.encode(rows)
    wanted = _ids(backend, rows)
    assert lengths.tolist() == list(map(len, wanted))
    assert ids.tolist() == list(itertools.chain.from_iterable(wanted))


@pytest.mark.parametrize(("split", "digits"), [("gpt2", 1), ("gpt4", 1), ("chinese", 3)])
def test_both_engines_cut_around_every_code_point_alike(split: str, digits: int) -> None:
    backend = vocabularies.all_pairs_of_bytes(pre_tokenizer(split, digits))
    fast = fast_encoder(backend)
    assert fast is not None
    every = (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    known = [character for character in every if fast.knows(character)]
    assert len(known) > 140_000
    # The classes are the same for all rules: one tries every character, the others every third.
    known = known if split == "gpt4" else known[::3]
    for start in range(0, len(known), 20_000):
        rows = [f"a{c} {c}1{c}  {c}'{c}.{c}\n漢{c}" for c in known[start : start + 20_000]]
        wanted = list(itertools.chain.from_iterable(_ids(backend, rows)))
        assert fast.encode(rows)[0].tolist() == wanted


@pytest.mark.parametrize("style", STYLES)
def test_vocabularies_of_gpt2_llama3_and_qwen_are_proven(style) -> None:
    backend = style()
    tokenizer = Tokenizer(backend)
    assert tokenizer._batches.fast is not None
    rows = [vocabularies.kinds_at_random(80, seed) for seed in range(300)]
    rows += ["<tool_call> <|im_end|>", "e\u0301", vocabularies.TEXT, "", "<|endoftext|>"]
    assert tokenizer.encode_batch(rows) == _ids(backend, rows)


@pytest.mark.parametrize(
    "style", [vocabularies.llama2, vocabularies.unigram, vocabularies.wordpiece]
)
def test_other_vocabularies_go_the_original_way(style) -> None:
    assert fast_encoder(style()) is None


@given(st.lists(texts, max_size=8))
@settings(deadline=None)
def test_batches_are_the_same_fast_or_not(rows: list[str]) -> None:
    tokenizer = _OWN
    assert tokenizer.encode_batch(rows) == [tokenizer.encode(row) for row in rows]


@given(st.lists(texts, max_size=8))
@settings(deadline=None)
def test_flat_batches_hold_the_rows_of_batches(rows: list[str]) -> None:
    ids, lengths = _OWN.encode_batch_flat(rows)
    assert (ids.dtype, lengths.dtype) == (np.uint32, np.int64)
    parts = np.split(ids, np.cumsum(lengths)[:-1]) if rows else []
    assert [part.tolist() for part in parts] == _OWN.encode_batch(rows)


def test_the_number_of_threads_changes_nothing(monkeypatch) -> None:
    rows = [vocabularies.kinds_at_random(100, seed) for seed in range(500)]
    found = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("RAYON_NUM_THREADS", threads)
        monkeypatch.setattr(batches, "_SHARE", 1000)
        found.append(_OWN.encode_batch(rows))
    assert found[0] == found[1] == found[2] == _ids(_OWN.backend, rows)


def test_unknown_texts_keep_their_place_among_known_ones() -> None:
    rows = ["a", "b\U0010ffffc", "d", "\ud800", "\ue000", "e" * 100, "f\u0378"]
    assert _OWN.encode_batch(rows) == [_OWN.encode(row) for row in rows]


def test_an_engine_that_would_give_up_is_not_asked() -> None:
    space = " " * 1_100_000
    assert _OWN.encode_batch([space]) == [_OWN.encode(space)]
    assert not _OWN._batches.fast.knows(" " * 100_000)


def test_without_tiktoken_the_ids_are_the_same(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    plain = BatchEncoder(_OWN.backend, _OWN.encode)
    assert plain.fast is None
    assert plain.lists([vocabularies.TEXT]) == _OWN.encode_batch([vocabularies.TEXT])


LETTERS = BYTE_TO_CHARACTER[ord("a")], BYTE_TO_CHARACTER[ord("b")]


@st.composite
def models_of_two_letters(draw) -> dict:
    """Any merges at all, with one or several ways to make a token."""
    vocab = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}
    merges: list[tuple[str, str]] = []
    tokens = list(LETTERS)
    for _ in range(draw(st.integers(1, 9))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        token = left + right
        if token in vocab:
            continue
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in splits if set(pair) <= set(vocab)]
        merges += draw(st.permutations(known)) if draw(st.booleans()) else [(left, right)]
        vocab[token] = len(vocab)
        tokens.append(token)
    whole = draw(st.booleans())
    return {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": whole}


@given(models_of_two_letters(), st.lists(st.text("ab", max_size=40), min_size=5, max_size=20))
@settings(deadline=None, max_examples=400)
def test_what_is_proven_is_true(model: dict, rows: list[str]) -> None:
    ranks = proven_ranks(model)
    assume(ranks is not None)
    arguments = {name: model[name] for name in ("vocab", "merges", "ignore_merges")}
    backend = Backend(models.BPE(**arguments))
    encoding = tiktoken.Encoding(
        "two letters", pat_str="(?s:.+)", mergeable_ranks=ranks, special_tokens={}
    )
    for row in [*rows, "ab" * 200, "a" * 301]:
        assert encoding.encode_ordinary(row) == backend.encode(row).ids


def _two_letters(*merges: tuple[str, str]) -> dict:
    vocab = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return {"type": "BPE", "vocab": vocab, "merges": list(merges)}


def test_what_could_differ_is_not_proven() -> None:
    good = _two_letters(("a", "b"), ("ab", "a"))
    assert proven_ranks(good) is not None
    # The bytes of "aba" give [ab, a] before "ba" is there, so that token is never made.
    assert proven_ranks(_two_letters(("a", "b"), ("b", "a"), ("a", "ba"))) is None
    late = {**good, "merges": good["merges"][::-1]}
    assert proven_ranks(late) is None
    swapped = {**good["vocab"], "ab": 257, "aba": 256}
    assert proven_ranks({**good, "vocab": swapped}) is None
    missing = {token: i for token, i in good["vocab"].items() if token != "z"}
    assert proven_ranks({**good, "vocab": missing}) is None
    assert proven_ranks({**good, "dropout": 0.1}) is None
    whole = {**good["vocab"], "zebra": 1000}
    assert proven_ranks({**good, "vocab": whole, "ignore_merges": True}) is None
    assert proven_ranks({**good, "vocab": whole}) == proven_ranks(good)
    assert proven_ranks(_two_letters()) is not None


def test_unknown_ways_to_cut_text_have_no_twin() -> None:
    known = json.loads(vocabularies.gpt2().to_str())["pre_tokenizer"]
    assert twin_of(known) is not None
    assert twin_of({**known, "add_prefix_space": True}) is None
    assert twin_of({**known, "use_regex": False}) is None
    assert twin_of(None) is None
    steps = json.loads(vocabularies.llama3().to_str())["pre_tokenizer"]["pretokenizers"]
    for change in ({"behavior": "Removed"}, {"invert": True}, {"pattern": {"Regex": r"\w+"}}):
        changed = [{**steps[0], **change}, steps[1]]
        assert twin_of({"type": "Sequence", "pretokenizers": changed}) is None


def test_characters_are_found_outside_a_set() -> None:
    finder = outside("abcx")
    assert finder.search("abcxa") is None and finder.search("ax😀").group() == "😀"
    assert outside("").search("\n")


_OWN = train_tokenizer([vocabularies.TEXT], 500)
