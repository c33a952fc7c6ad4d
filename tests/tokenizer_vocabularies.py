"""Vocabularies as other projects leave them, small: the forms a tokenizer.json comes in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from data_texts import chinese, english
from fourstage.tokenizer.bytelevel import BYTE_TO_CHARACTER
from fourstage.tokenizer.splitting import pre_tokenizer

# One of every kind of character that a rule for cutting text speaks of.
KINDS = "as'tT SZ\u017f漢々〇⺀かé\u0301١½1 7\t\n\r\u00a0\u0085\u3000\u200b.。，！_🎉"
TEXT = english(200) + chinese(100) + " def f(x):\n    return x['a'] + 1234567\r\n\r\n\n"


def kinds_at_random(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(KINDS, k=length))


def byte_level(
    model: models.Model, cut: pre_tokenizers.PreTokenizer, specials: Sequence[str] = ()
) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = cut
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    return backend


def all_pairs_of_bytes(cut: pre_tokenizers.PreTokenizer) -> Backend:
    """Any two bytes merge, so that the ids of a text show where it was cut."""
    vocab = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}
    merges = [(left, right) for left in BYTE_TO_CHARACTER for right in BYTE_TO_CHARACTER]
    random.Random(0).shuffle(merges)
    vocab |= {left + right: 256 + place for place, (left, right) in enumerate(merges)}
    return byte_level(models.BPE(vocab=vocab, merges=merges), cut)


def _trained(cut: pre_tokenizers.PreTokenizer, size: int, texts: Iterable[str]) -> Backend:
    backend = byte_level(models.BPE(), cut)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    return backend


def gpt2() -> Backend:
    """No rule for digits, and the end of text in the vocabulary itself."""
    backend = _trained(pre_tokenizers.ByteLevel(add_prefix_space=False), 600, [TEXT])
    backend.add_special_tokens(["<|endoftext|>"])
    return backend


def llama3() -> Backend:
    """Digits in threes, every way to make a token among the merges, whole pieces at once."""
    import json

    described = json.loads(_trained(pre_tokenizer("gpt4", 3), 700, [TEXT]).to_str())
    vocab = described["model"]["vocab"]
    made = sorted((token for token in vocab if len(token) > 1), key=vocab.__getitem__)
    described["model"]["merges"] = [
        [token[:place], token[place:]]
        for token in made
        for place in range(1, len(token))
        if token[:place] in vocab and token[place:] in vocab
    ]
    described["model"]["ignore_merges"] = True
    backend = Backend.from_str(json.dumps(described))
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    backend.add_special_tokens([f"<|{name}|>" for name in names])
    return backend


def qwen2() -> Backend:
    """Text is composed first, and some added tokens are not special."""
    backend = _trained(pre_tokenizer("gpt4", 1), 700, [TEXT])
    backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return backend


def llama2() -> Backend:
    """Pieces of SentencePiece: spaces as marks, one put in front, unknown characters as bytes."""
    words = [f"▁{word}" for word in english(50).replace("\n", " ").split(" ")]
    letters = sorted(set("".join(words)))
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in letters:
        vocab.setdefault(token, len(vocab))
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("n", "e"), ("r", "e")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def unigram(byte_fallback: bool = True) -> Backend:
    """A unigram vocabulary with SentencePiece's marks."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] if byte_fallback else []
    words = sorted({f"▁{word}" for word in english(50).split()})
    letters = sorted(set("".join(words)))
    pieces += [(word, -5.0) for word in words] + [(letter, -10.0) for letter in letters]
    backend = Backend(models.Unigram(pieces, 0, byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def wordpiece() -> Backend:
    """BERT's: what it does not know is lost."""
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    for token in sorted(set(english(50).lower().split())):
        vocab[token] = len(vocab)
    backend = Backend(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return backend
