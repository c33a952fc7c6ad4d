"""Training a byte-level BPE vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from fourstage.errors import InputError
from fourstage.tokenizer.chat import END_OF_TEXT, OWN, PAD, REWARD
from fourstage.tokenizer.sampling import training_sample
from fourstage.tokenizer.splitting import LONGEST_HAN, pre_tokenizer
from fourstage.tokenizer.tokenizer import Tokenizer

# Special tokens come first, so that their ids are the same in every vocabulary.
SPECIALS = (END_OF_TEXT, *OWN.specials, REWARD, PAD)
SMALLEST = len(SPECIALS) + 256


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    split: str = "gpt4",
    digits: int = 1,
    exact: bool = True,
    min_count: int = 2,
) -> Tokenizer:
    """A byte-level BPE vocabulary of `texts`, special tokens first, lossless on any text.

    The texts may be more than memory holds: of very many a sample is counted, drawn from all.

    Args:
        texts: what the merges are counted on.
        vocab_size: tokens, special ones included.
        split: how text is cut into pieces, within which bytes merge; see `splitting`.
        digits: how many stand together at most, 1 or 3.
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
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizer(split, digits)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_count,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    longest = LONGEST_HAN if split == "chinese" else None
    backend.train_from_iterator(training_sample(texts, longest_piece=longest), trainer)
    found = backend.get_vocab_size(with_added_tokens=True)
    if exact and found < vocab_size:
        raise InputError(
            f"tokenizer.vocab_size={vocab_size} is too large for the text, which gives {found} "
            f"tokens that occur at least {min_count} times: write tokenizer.vocab_size={found} or "
            "less, or give more text"
        )
    return Tokenizer(backend)
