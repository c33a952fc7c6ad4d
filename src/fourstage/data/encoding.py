"""Materials as token rows that fit the context: what is too long is cut at its end, or dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fourstage.data.batch import Example
from fourstage.tasks import Messages, Task
from fourstage.tokenizer import Tokenizer

_CHUNK = 2048


@dataclass(frozen=True)
class Demonstration:
    """A whole conversation; `task` is what its last answer responds to."""

    task: Task
    messages: Messages

    @property
    def response(self) -> str:
        return self.messages[-1]["content"]

    def to_json(self) -> dict:
        return {"task": self.task.to_json(), "response": self.response}


@dataclass(frozen=True)
class Pair:
    """Two answers to one task; gold where a program knows it, the margin where a row tells it."""

    task: Task
    chosen: str
    rejected: str
    gold_chosen: float | None = None
    gold_rejected: float | None = None
    margin: float | None = None

    def to_json(self) -> dict:
        row = {"task": self.task.to_json(), "chosen": self.chosen, "rejected": self.rejected}
        for name in ("gold_chosen", "gold_rejected", "margin"):
            value = getattr(self, name)
            row |= {} if value is None else {name: value}
        return row


def turns(prompt: str | Messages) -> Messages:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def answered(prompt: str | Messages, response: str) -> Messages:
    return [*turns(prompt), {"role": "assistant", "content": response}]


def document_rows(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Token rows of documents with their start and end, encoded many at a time."""
    iterator = iter(texts)
    while chunk := list(islice(iterator, _CHUNK)):
        for ids in tokenizer.encode_batch(chunk):
            yield [tokenizer.start_of_text, *ids, tokenizer.end_of_text]


def dialogue_example(
    tokenizer: Tokenizer, messages: Messages, context: int, counts: Counter[str]
) -> Example | None:
    """A conversation of at most `context` cells; None when no trained token is left in them.

    `counts` notes what was "cut" and what was "too_long".
    """
    example = tokenizer.chat_example(messages)
    if len(example.tokens) > context + 1:
        mask = example.trained()[: context + 1]
        if not mask.any():
            counts["too_long"] += 1
            return None
        counts["cut"] += 1
        example = Example(example.tokens[: context + 1], mask)
    return example


def fits_whole(tokenizer: Tokenizer, pair: Pair, context: int) -> bool:
    """Whether both rows of a comparison fit without being cut."""
    sides = (answered(pair.task.prompt, answer) for answer in (pair.chosen, pair.rejected))
    return all(len(tokenizer.reward_row(side)) <= context for side in sides)


def pair_examples(
    tokenizer: Tokenizer, pair: Pair, context: int, counts: Counter[str]
) -> tuple[Example, Example] | None:
    """Both rows of a comparison, at most `context` cells each; None when the prompt fills them.

    An answer that is too long loses its end, and both lose what lies past the same cell, so that
    the length alone does not tell them apart. Each still ends its turn, then in `<|reward|>`.
    """
    prompt = tokenizer.chat_prompt(pair.task.prompt)
    tail = [tokenizer.end_of_turn, *tokenizer.after_turn, tokenizer.reward]
    room = context - len(prompt) - len(tail)
    sides = [tokenizer.encode(answer) for answer in (pair.chosen, pair.rejected)]
    if max(map(len, sides)) > room:
        if room < 1 or sides[0][:room] == sides[1][:room]:
            counts["too_long"] += 1
            return None
        counts["cut"] += 1
    rows = []
    for side in sides:
        ids = [*prompt, *side[:room], *tail]
        mask = np.zeros(len(ids), bool)
        # The answer and the token that ends its turn.
        mask[len(prompt) : len(ids) - len(tail) + 1] = True
        rows.append(Example(np.array(ids, np.int64), mask))
    return rows[0], rows[1]
