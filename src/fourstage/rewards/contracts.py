"""What a reward gets and gives: items, and for each a number, a fault, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fourstage.tasks import Messages, Task

# A larger number is no reward, and sums and squares of such ones leave single precision.
_LARGEST = 1e9


@dataclass(frozen=True)
class Item:
    """A response with all that it may be judged by.

    Attributes:
        prompt: what was asked, as text or as messages.
        response: what the model wrote, without special tokens.
        ended: whether it ended its turn by itself.
        tokens: how many it drew, with the end of turn if any.
        truth: what an answer can be checked by, as `data.shapes` found it in the row.
        columns: the row itself, by the names its file has.
        learned: the score of a reward model, where there is one.
    """

    prompt: str | Messages
    response: str
    ended: bool = True
    tokens: int = 0
    truth: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    learned: float | None = None

    def value(self, column: str | None) -> Any:
        """The value of a column; of none that is named the ground truth. None where it lacks."""
        return self.truth if column is None else self.columns.get(column)

    @property
    def asked(self) -> str:
        """The prompt as plain text: of messages, what each says, a blank line between two."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(message["content"] for message in self.prompt)


def item_of(
    task: Task, response: str, ended: bool, tokens: int, learned: float | None = None
) -> Item:
    """An item of a task: its reference is the truth, and the row it was made from the columns."""
    facts = task.facts
    columns = facts.get("columns") or {}
    return Item(task.prompt, response, ended, tokens, facts.get("reference"), columns, learned)


@dataclass(frozen=True)
class Outcome:
    """What a reward says of one item.

    Attributes:
        score: the number; None where there is a fault, or where it says nothing of such items.
        fault: why there is no number, though there should be one.
        note: what the number is of, for whoever looks at samples.
    """

    score: float | None = None
    fault: str = ""
    note: str = ""


def outcome(value: Any, note: str = "") -> Outcome:
    """A number as an outcome; None says nothing, and what is no finite number is a fault."""
    if value is None:
        return Outcome(note=note)
    if not hasattr(value, "__float__"):
        return Outcome(fault=f"{_short(value)} is no number")
    try:
        number = float(value)
    except Exception as error:
        # Numbers of other libraries raise what they like: such as a tensor of two.
        return Outcome(fault=f"{_short(value)} is no number ({type(error).__name__})")
    if not math.isfinite(number):
        return Outcome(fault=f"the number is {number}")
    if abs(number) > _LARGEST:
        return Outcome(fault=f"the number {number:g} is beyond {_LARGEST:g}")
    return Outcome(number, note=note)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Reward:
    """Gives a number to each of several items. What it was given decides what comes out."""

    def start(self, say: Callable[[str], None]) -> None:
        """Gets ready before training.

        Args:
            say: tells a person what will be used.

        Raises:
            InputError: it cannot work: what it needs is not there.
        """

    def unfit(self, item: Item) -> str:
        """Why it can judge no response to this row; empty where it can."""
        return ""

    def at_odds(self, items: Sequence[Item]) -> str:
        """Why it can judge none of all rows, which are looked at once before training; empty where
        it can."""
        return ""

    def advice(self, items: Sequence[Item]) -> str:
        """What a person may want to change, though it can judge all rows; empty where nothing."""
        return ""

    def score(self, items: Sequence[Item]) -> list[Outcome]:
        """An outcome for each item, in their order."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends what `start` began."""


class EachAlone(Reward):
    """A reward that judges each item by itself, in this process."""

    def score(self, items: Sequence[Item]) -> list[Outcome]:
        return [self._guarded(item) for item in items]

    def _guarded(self, item: Item) -> Outcome:
        if reason := self.unfit(item):
            return Outcome(fault=reason)
        return self.of(item)

    def of(self, item: Item) -> Outcome:
        """The outcome of an item that is fit."""
        raise NotImplementedError
