"""Many texts to ids: by the fastest encoder whose ids are those of the vocabulary, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain

import numpy as np
from tokenizers import Tokenizer as Backend

from fourstage.tokenizer.fast import FastEncoder, fast_encoder

# Ids of texts one after another, uint32, and how many each text has, int64.
Flat = tuple[np.ndarray, np.ndarray]
# Characters from which on the second that a proof takes is soon won back.
_WORTH_A_PROOF = 2_000_000
# Characters that a thread takes at a time.
_SHARE = 200_000


class BatchEncoder:
    """Encodes many texts; which encoder took them shows in nothing but the time.

    Args:
        backend: the vocabulary, with typed special tokens as plain text.
        encode: encodes one text that the vocabulary's own batches refuse (lone surrogates).
    """

    def __init__(self, backend: Backend, encode: Callable[[str], list[int]]):
        self._backend, self._encode = backend, encode
        self._characters = 0

    @cached_property
    def fast(self) -> FastEncoder | None:
        """tiktoken's encoder, if equality is proven for this vocabulary."""
        return fast_encoder(self._backend)

    def lists(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        rows: list[list[int]] = []
        for ids, lengths in self._shares(texts):
            flat, start = ids.tolist(), 0
            for length in lengths.tolist():
                rows.append(flat[start : start + length])
                start += length
        return rows

    def flat(self, texts: Sequence[str]) -> Flat:
        """Ids of all texts."""
        shares = list(self._shares(texts))
        if not shares:
            return _flat([])
        ids, lengths = zip(*shares, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def _shares(self, texts: Sequence[str]) -> Iterator[Flat]:
        """Ids of the texts in their order, some texts at a time."""
        self._characters += sum(map(len, texts))
        if self._characters < _WORTH_A_PROOF or self.fast is None:
            # `tokenizers` spreads its batches over the cores itself.
            yield from map(self._slow, _parts(texts, usual_threads() * _SHARE))
            return
        parts = list(_parts(texts, _SHARE))
        threads = min(usual_threads(), len(parts))
        if threads <= 1:
            yield from map(self._mixed, parts)
            return
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(self._mixed, parts)

    def _mixed(self, texts: Sequence[str]) -> Flat:
        """Texts that the fast encoder does not know go the original way."""
        fast = self.fast
        assert fast is not None
        known = [fast.knows(text) for text in texts]
        if all(known):
            return fast.encode(texts)
        # Runs of texts of one kind, so that the order stays.
        borders = np.flatnonzero(np.diff(known)) + 1
        starts, stops = [0, *borders.tolist()], [*borders.tolist(), len(texts)]
        shares = [
            (fast.encode if known[start] else self._slow)(texts[start:stop])
            for start, stop in zip(starts, stops, strict=True)
        ]
        ids, lengths = zip(*shares, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def _slow(self, texts: Sequence[str]) -> Flat:
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # a lone surrogate
            return _flat([self._encode(text) for text in texts])
        return _flat([encoding.ids for encoding in encodings])


def _flat(rows: Sequence[Sequence[int]]) -> Flat:
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(chain.from_iterable(rows), np.uint32, int(lengths.sum())), lengths


def _parts(texts: Sequence[str], characters: int) -> Iterator[Sequence[str]]:
    """The texts in their order, about so many characters at a time."""
    start = size = 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= characters:
            yield texts[start : place + 1]
            start, size = place + 1, 0
    if start < len(texts):
        yield texts[start:]


def usual_threads() -> int:
    """As many as `tokenizers` takes: by its own environment variables, else all cores."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "off", "0", "no"):
        return 1
    asked = os.environ.get("RAYON_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
