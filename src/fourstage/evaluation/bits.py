"""Bits per byte of held-out documents, and how often what the text determines is foreseen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage.data.batch import Batch, Example
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.scoring import greedy_hits
from fourstage.model.transformer import Transformer

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


@dataclass(frozen=True)
class Window:
    """Part of a document that fits the context; only cells from `first` on count."""

    document: int
    example: Example
    first: int


def windows(document: int, tokens: np.ndarray, context: int) -> list[Window]:
    """A document whole, or where it is longer than the context in windows that overlap by half.

    Each token but the first is counted once, with at least half a context before it.
    """
    found, counted, start = [], 0, 0
    while True:
        end = min(start + context + 1, len(tokens))
        found.append(Window(document, Example(tokens[start:end]), counted - start))
        counted = end - 1
        if end == len(tokens):
            return found
        start += max(1, context // 2)


def bits_per_byte(
    model: Transformer, tokenizer: Tokenizer, documents: Sequence[Mapping[str, Any]]
) -> Numbers:
    """Each document alone, after `<|endoftext|>` and with its own end.

    Args:
        documents: rows with `text`, and where they are known `kind`, `bits` (`-log2 p(text)`) and
            `determined` (character spans [start, end) that the text above them determines).

    Returns:
        `validation_bits_per_byte`: sum of bits over sum of UTF-8 bytes, also by kind;
        `entropy_bits_per_byte`: the same of the documents' own probabilities;
        `determined_accuracy`: greedy hits on the tokens within determined spans, given the true
        text before them; `bytes_per_token`.
    """
    texts = [document["text"] for document in documents]
    examples = [np.asarray(tokenizer.document(text).tokens) for text in texts]
    parts = [
        window
        for index, tokens in enumerate(examples)
        for window in windows(index, tokens, model.config.context)
    ]
    batch = Batch.language([part.example for part in parts])
    logprobs, hits = greedy_hits(model, batch)
    starts = np.cumsum([0, *batch.lengths])
    bits = np.zeros(len(texts))
    foreseen: list[list[bool]] = [[] for _ in texts]
    for number, part in enumerate(parts):
        cells = slice(starts[number] + part.first, starts[number + 1])
        bits[part.document] -= float(logprobs[cells].double().sum()) / math.log(2)
        foreseen[part.document].extend(hits[cells].tolist())
    sizes = np.array([len(text.encode("utf-8")) for text in texts])
    kinds = [document["kind"] for document in documents] if "kind" in documents[0] else []
    numbers = Numbers().add_ratios("validation_bits_per_byte", bits, sizes, kinds)
    if all("bits" in document for document in documents):
        own = [document["bits"] for document in documents]
        numbers.add_ratios("entropy_bits_per_byte", own, sizes, kinds)
    if all("determined" in document for document in documents):
        right, asked = _determined(tokenizer, documents, examples, foreseen)
        numbers.add_ratios("determined_accuracy", right, asked, kinds)
    return numbers.add("bytes_per_token", sizes.sum() / sum(len(e) - 1 for e in examples))


def _determined(
    tokenizer: Tokenizer,
    documents: Sequence[Mapping[str, Any]],
    examples: Sequence[np.ndarray],
    foreseen: Sequence[Sequence[bool]],
) -> tuple[list[int], list[int]]:
    """Of each document: determined tokens that were the most likely ones, and determined tokens."""

    @cache
    def piece(token: int) -> str:
        return tokenizer.decode([token])

    right, asked = [], []
    for document, tokens, hits in zip(documents, examples, foreseen, strict=True):
        ids = tokens[1:-1].tolist()
        inside = within(document["text"], [piece(token) for token in ids], document["determined"])
        right.append(sum(hit for hit, chosen in zip(hits, inside, strict=False) if chosen))
        asked.append(sum(inside))
    return right, asked


def within(text: str, pieces: Sequence[str], spans: Sequence[Sequence[int]]) -> list[bool]:
    """Which pieces of `text` lie in one of the character spans; a piece's leading space is free.

    Raises:
        ValueError: the pieces are not the text's.
    """
    if "".join(pieces) != text:
        raise ValueError("a token of this text is no whole character, so spans cannot be placed")
    found, end = [], 0
    for piece in pieces:
        start, end = end + len(piece) - len(piece.lstrip(" ")), end + len(piece)
        found.append(start < end and any(low <= start and end <= high for low, high in spans))
    return found
