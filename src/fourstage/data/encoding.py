"""Materials as token rows that fit the context: what is too long is cut at its end, or dropped."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from fourstage.data.batch import Example
from fourstage.tasks import Messages, Task
from fourstage.tokenizer import Tokenizer

_CHUNK = 2048


@dataclass(frozen=True)
class Demonstration:
    """A whole conversation; `task` is what its last answer responds to.

    Attributes:
        trained: of each message, whether it is trained on; () is every answer.
    """

    task: Task
    messages: Messages
    trained: tuple[bool, ...] = ()

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


@dataclass(frozen=True)
class Judgement:
    """A response to one task, called good or bad."""

    task: Task
    messages: Messages
    is_good: bool

    @property
    def demonstration(self) -> Demonstration:
        """The conversation, of which the last answer alone is trained."""
        before = (False,) * (len(self.messages) - 1)
        return Demonstration(self.task, self.messages, (*before, True))


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
    tokenizer: Tokenizer, shown: Demonstration, context: int, counts: Counter[str]
) -> Example | None:
    """A conversation of at most `context` cells; None when no trained token is left in them.

    `counts` notes what was "cut" and what was "too_long".
    """
    example = tokenizer.chat_example(shown.messages, shown.trained)
    if len(example.tokens) > context + 1:
        mask = example.trained()[: context + 1]
        if not mask.any():
            counts["too_long"] += 1
            return None
        counts["cut"] += 1
        example = Example(example.tokens[: context + 1], mask)
    return example


def shortened(tokenizer: Tokenizer, pair: Pair, context: int, counts: Counter[str]) -> Pair | None:
    """A comparison whose rows fit `context` cells; None when the prompt fills them.

    An answer that is too long loses its end, and both lose what lies past the same cell, so that
    the length alone does not tell them apart. One whose gold is known is dropped: cut, its gold
    would be another.
    """
    around = len(tokenizer.reward_row(answered(pair.task.prompt, "")))
    room = context - around
    sides = [tokenizer.encode(answer) for answer in (pair.chosen, pair.rejected)]
    if max(map(len, sides)) <= room:
        return pair
    cut = [_beginning(tokenizer, ids, room) for ids in sides]
    if room < 1 or cut[0] == cut[1] or pair.gold_chosen is not None:
        counts["too_long"] += 1
        return None
    counts["cut"] += 1
    return dataclasses.replace(pair, chosen=cut[0], rejected=cut[1])


def cut_to(tokenizer: Tokenizer, prompt: str | Messages, response: str, context: int) -> str | None:
    """A response without what does not fit `context` cells; None when the prompt fills them."""
    room = context - len(tokenizer.reward_row(answered(prompt, "")))
    ids = tokenizer.encode(response)
    if len(ids) <= room:
        return response
    return _beginning(tokenizer, ids, room) or None if room > 0 else None


def _beginning(tokenizer: Tokenizer, ids: list[int], room: int) -> str:
    """Text of the first ids that has at most `room` ids of its own."""
    for size in range(room, 0, -1):
        # A cut within a character leaves bytes that are none.
        text = tokenizer.decode(ids[:size]).rstrip("\ufffd")
        if len(tokenizer.encode(text)) <= room:
            return text
    return ""


def pair_examples(tokenizer: Tokenizer, pair: Pair) -> list[Example]:
    """The chosen row and the rejected one, each ending in `<|reward|>`."""
    sides = (answered(pair.task.prompt, answer) for answer in (pair.chosen, pair.rejected))
    return [tokenizer.reward_example(side) for side in sides]
