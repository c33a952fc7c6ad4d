"""Training a byte-level BPE vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from fourstage.errors import InputError
from fourstage.tokenizer.chat import END_OF_TEXT, OWN, PAD, REWARD
from fourstage.tokenizer.tokenizer import Tokenizer

# Special tokens come first, so that their ids are the same in every vocabulary.
SPECIALS = (END_OF_TEXT, *OWN.specials, REWARD, PAD)
SMALLEST = len(SPECIALS) + 256


def byte_level_backend() -> Backend:
    """An empty byte-level BPE: digits one by one, words cut as GPT-2 cuts them."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, exact: bool = True, min_count: int = 2
) -> Tokenizer:
    """A byte-level BPE vocabulary of `texts`, special tokens first, lossless on any text.

    Args:
        texts: what the merges are counted on.
        vocab_size: tokens, special ones included.
        exact: refuse a text that holds fewer; otherwise the vocabulary comes out smaller.
        min_count: a pair merges only where it occurs this often.

    Raises:
        InputError: the vocabulary is too small for the 256 bytes and the special tokens, or too
            large for the text.
    """
    if vocab_size < SMALLEST:
        raise InputError(
            f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes and {len(SPECIALS)} "
            f"special tokens need {SMALLEST}; write tokenizer.vocab_size={SMALLEST} or more"
        )
    backend = byte_level_backend()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_count,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab_size(with_added_tokens=True)
    if exact and found < vocab_size:
        raise InputError(
            f"tokenizer.vocab_size={vocab_size} is too large for the text, which gives {found} "
            f"tokens that occur at least {min_count} times: write tokenizer.vocab_size={found} or "
            "less, or give more text"
        )
    return Tokenizer(backend)
