"""Rows as the conversations that training reads, and how long they are in tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fourstage.data.shapes import Row
from fourstage.tasks import Messages
from fourstage.tokenizer import Tokenizer

# Bytes of UTF-8 that a token holds, roughly, in English as in Chinese; and tokens around a turn.
BYTES_PER_TOKEN = 4
_AROUND = 2


def sides(row: Row) -> list[tuple[str, Messages]]:
    """The conversations of a row that is no plain text, each with what it is called.

    A prompt is one that has no answer yet; a comparison has two, a ranking one an answer.
    """
    if row.kind == "comparison":
        return [(name, row.conversation(getattr(row, name))) for name in ("chosen", "rejected")]
    if row.kind == "ranking":
        return [(_standing(row, n), row.conversation(r)) for n, r in enumerate(row.responses)]
    name = "" if row.label is None else f"label {row.label}".lower()
    return [(name, list(row.messages or []))]


def is_scored(row: Row) -> bool:
    """Whether a reward is read at the end of each side of it."""
    return row.kind in ("comparison", "ranking")


def is_over(row: Row, tokens: int, context: int) -> bool:
    """Whether a row of so many tokens has no room in `context` cells.

    A cell predicts the next token, so the last token needs none; a reward is read at the last.
    """
    return tokens - (not is_scored(row)) > context


def _standing(row: Row, number: int) -> str:
    if row.scores:
        return f"score {row.scores[number]:g}"
    return f"rank {row.ranks[number]:g}" if row.ranks else f"response {number + 1}"


def token_counts(tokenizer: Tokenizer | None, rows: Sequence[Row]) -> list[int]:
    """Tokens of each row, special ones included; of several sides those of the longest.

    Without a tokenizer they are estimated from the bytes.
    """
    if tokenizer is None:
        return [_estimate(row) for row in rows]
    texts = [row.text for row in rows if row.kind == "text"]
    # A document lies between its start and its end.
    ids = iter(tokenizer.encode_batch(texts))
    return [len(next(ids)) + 2 if row.kind == "text" else _longest(tokenizer, row) for row in rows]


def _longest(tokenizer: Tokenizer, row: Row) -> int:
    if row.kind == "prompt":
        return len(tokenizer.chat_prompt(row.messages or []))
    if is_scored(row):
        return max(len(tokenizer.reward_row(messages)) for _, messages in sides(row))
    return max(len(tokenizer.chat_example(messages).tokens) for _, messages in sides(row))


def _estimate(row: Row) -> int:
    if row.kind == "text":
        return 2 + _bytes(row.text) // BYTES_PER_TOKEN
    return max(
        sum(_AROUND + _bytes(message["content"]) // BYTES_PER_TOKEN for message in messages)
        for _, messages in sides(row)
    )


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def quantiles(tokens: np.ndarray) -> dict[str, int]:
    """Median, 90% and maximum of token counts [rows], and their sum; empty where there are none."""
    if not len(tokens):
        return {}
    median, high = np.quantile(tokens, [0.5, 0.9], method="inverted_cdf")
    return {
        "median": int(median),
        "p90": int(high),
        "longest": int(tokens.max()),
        "total": int(tokens.sum()),
    }
