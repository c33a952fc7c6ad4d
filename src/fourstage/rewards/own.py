"""A person's own function as a reward, called as TRL calls them, in a process of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fourstage.rewards.contracts import Item, Outcome, Reward, outcome
from fourstage.rewards.importing import imported, located
from fourstage.rewards.workers import Workers

_PROMPTS, _COMPLETIONS = "prompts", "completions"


class Own(Reward):
    """`function(prompts=[...], completions=[...], COLUMN=[...])` -> a number for each, or None.

    A row's columns come under their own names, what a response is by itself as `ended` and
    `tokens`, and the truth as `ground_truth` unless the rows have such a column. What the function
    does not name is left out, unless it takes `**kwargs`. The name of the function stands in the
    recipe, never in data.

    Args:
        function: `module:function`, or `file.py:function`.
        messages: whether prompts and completions are lists of messages, and not text.
        seconds: that a batch may take.
    """

    def __init__(self, function: str, messages: bool = False, seconds: float = 60.0):
        self.function, self.messages = function, messages
        # A task of None asks what the function cannot do without.
        self._workers: Workers[dict[str, list[Any]] | None] = Workers(
            functools.partial(_made, function), 1, seconds
        )
        self._columns: tuple[str, ...] = ()

    def start(self, say: Callable[[str], None]) -> None:
        name, what = located("function", self.function)
        say(f"rl.rewards calls {name}() of {what}, as the recipe says")
        self._workers.start()

    def at_odds(self, items: Sequence[Item]) -> str:
        # A batch may hold no row of those that have a column: the function then gets None of it.
        self._columns = tuple(dict.fromkeys(name for item in items for name in item.columns))
        (answer,) = self._workers.answers([None])
        if answer.fault:
            return str(answer.fault)
        given = self._arguments(items[:1])
        lacking = [name for name in answer.value if name not in given]
        if not lacking:
            return ""
        return (
            f"function={self.function} asks for {', '.join(lacking)}, which no row has (there are: "
            f"{', '.join(sorted(given))})"
        )

    def score(self, items: Sequence[Item]) -> list[Outcome]:
        (answer,) = self._workers.answers([self._arguments(items)])
        if answer.fault:
            return [Outcome(fault=answer.fault)] * len(items)
        return [
            Outcome(fault=each) if isinstance(each, str) else Outcome(each) for each in answer.value
        ]

    def close(self) -> None:
        self._workers.close()

    def _arguments(self, items: Sequence[Item]) -> dict[str, list[Any]]:
        here = (name for item in items for name in item.columns)
        columns = dict.fromkeys((*self._columns, *here))
        given = {name: [item.columns.get(name) for item in items] for name in columns}
        given.setdefault("ground_truth", [item.truth for item in items])
        given |= {"ended": [i.ended for i in items], "tokens": [i.tokens for i in items]}
        if self.messages:
            # It comes with torch, which the function's process does without.
            from fourstage.evaluation.responses import turns

            given[_PROMPTS] = [turns(item.prompt) for item in items]
            given[_COMPLETIONS] = [
                [{"role": "assistant", "content": item.response}] for item in items
            ]
        else:
            given[_PROMPTS] = [item.asked for item in items]
            given[_COMPLETIONS] = [item.response for item in items]
        return given


def _made(function: str) -> Callable[[dict[str, list[Any]] | None], list[Any]]:
    """Imports the function, in its process.

    Raises:
        InputError: it cannot be imported, or is none.
    """
    return functools.partial(_called, imported("function", function))


def _called(function: Callable[..., Any], given: dict[str, list[Any]] | None) -> list[Any]:
    """The numbers of a batch as plain ones, so that only such travel; of no batch the names of the
    arguments that the function cannot do without.

    Raises:
        ValueError: it gave something else than a number for each.
    """
    parameters = inspect.signature(function).parameters.values()
    needed = [
        each.name
        for each in parameters
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    if given is None:
        return needed
    count = len(given[_PROMPTS])
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        named = {each.name for each in parameters}
        given = {name: values for name, values in given.items() if name in named}
    lacking = [name for name in needed if name not in given]
    if lacking:
        raise ValueError(f"the rows have no {', '.join(lacking)}, which the function asks for")
    found = function(**given)
    try:
        numbers = list(found)
    except TypeError:
        raise ValueError(f"it returned {type(found).__name__}, and no list of numbers") from None
    if len(numbers) != count:
        raise ValueError(f"it returned {len(numbers)} numbers for {count} responses")
    return [_plain(each) for each in numbers]


def _plain(value: Any) -> float | str | None:
    """A number, nothing, or the words of a fault."""
    said = outcome(value)
    return said.fault or said.score
