"""How well a vocabulary fits texts, beside others, and whether every text comes back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.tokenizer.others import Count, counters
from fourstage.tokenizer.tokenizer import Tokenizer

_CHUNK = 256
_LONGEST = 20
# Words: Chinese characters one by one, and rows of other letters and digits.
_word = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff\uf900-\ufaff]+")
# White space that vocabularies with marks for spaces lose first.
_SPACED = (" a", "a ", "  a  b", "\n", "a\r\n\tb", "\u3000a")


def tokenizer_report(
    tokenizer: Tokenizer,
    samples: Mapping[str, Iterable[str]],
    others: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """What a person should know of a vocabulary before training with it.

    Args:
        samples: texts by source or language, read once and a few at a time; best texts that the
            merges were not counted on.
        others: names and paths of tokenizers to compare with, beside the well-known ones that are
            in the caches of this machine.

    Returns:
        `vocab_size`; `samples`, for each name `texts`, `bytes`, `words`, `tokens`,
        `bytes_per_token`, `tokens_per_word` and `others`, the bytes a token of other vocabularies;
        `not_at_hand`, names of well-known vocabularies that this machine lacks; `unused` and
        `unused_share`, ordinary tokens that no sample needs; `longest`, the longest tokens;
        `round_trip`, whether every text comes back, and `lost`, the first that does not.
    """
    counts = counters(others)
    compared = {name: count for name, count in counts.items() if count is not None}
    used = np.zeros(tokenizer.vocab_size, bool)
    measured = {
        name: _measured(tokenizer, texts, compared, used) for name, texts in samples.items()
    }
    ordinary = np.ones(tokenizer.vocab_size, bool)
    ordinary[list(tokenizer.special_ids)] = False
    unused = int((ordinary & ~used).sum())
    lost = first_lost(tokenizer)
    return {
        "vocab_size": tokenizer.vocab_size,
        "samples": measured,
        "not_at_hand": [name for name, count in counts.items() if count is None],
        "unused": unused,
        "unused_share": unused / max(1, int(ordinary.sum())),
        "longest": _longest(tokenizer),
        "round_trip": lost is None,
        "lost": lost,
    }


def _measured(
    tokenizer: Tokenizer, texts: Iterable[str], others: Mapping[str, Count], used: np.ndarray
) -> dict[str, Any]:
    """Sizes of one sample; marks the tokens that it needs in `used`."""
    totals = dict.fromkeys(("texts", "bytes", "words", "tokens"), 0)
    tokens = dict.fromkeys(others, 0)
    iterator = iter(texts)
    while chunk := list(islice(iterator, _CHUNK)):
        ids, _ = tokenizer.encode_batch_flat(chunk)
        used[ids] = True
        totals["texts"] += len(chunk)
        totals["bytes"] += sum(len(text.encode("utf-8", "surrogatepass")) for text in chunk)
        totals["words"] += sum(len(_word.findall(text)) for text in chunk)
        totals["tokens"] += len(ids)
        for name, count in others.items():
            tokens[name] += count(chunk)
    return {
        **totals,
        "bytes_per_token": _ratio(totals["bytes"], totals["tokens"]),
        "tokens_per_word": _ratio(totals["tokens"], totals["words"]),
        "others": {name: _ratio(totals["bytes"], count) for name, count in tokens.items()},
    }


def _ratio(amount: int, count: int) -> float | None:
    return amount / count if count else None


def _longest(tokenizer: Tokenizer) -> list[str]:
    """The tokens of most characters, the longest first."""
    special = tokenizer.special_ids
    texts = {tokenizer.token_text(i) for i in range(tokenizer.vocab_size) if i not in special}
    return sorted(texts, key=lambda text: (-len(text), text))[:_LONGEST]


def first_lost(tokenizer: Tokenizer) -> str | None:
    """The first text that does not come back from its ids; None where all of them do.

    Tried are all 1,112,064 code points that text may hold, in rows of one plane, and white space.
    """
    for row in _every_character():
        if tokenizer.decode(tokenizer.encode(row)) != row:
            return next((c for c in row if tokenizer.decode(tokenizer.encode(c)) != c), row)
    return next((t for t in _SPACED if tokenizer.decode(tokenizer.encode(t)) != t), None)


def _every_character(length: int = 4096) -> Iterator[str]:
    for start in range(0, 0x110000, length):
        codes = range(start, start + length)
        row = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        if row:
            yield row
