"""What an environment gets and gives, by the names that Gymnasium has for them.

    class Game:
        def reset(self, task: dict, seed: int) -> str | list[dict] | None: ...
        def step(self, response: str) -> tuple[str, float, bool]: ...
        def close(self) -> None: ...

One object is one episode. Its state is a function of the task, the seed and the responses: an
episode whose process was lost is played again from these. A person's own class need not inherit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourstage.errors import InputError, nearest
from fourstage.tasks import Messages, Task

# How values are called in a recipe.
_WORDS = {int: "a whole number", str: "text", bool: "true or false"}


class Environment:
    """One episode; keyword arguments of the class are the `options` of a recipe."""

    def reset(self, task: Mapping[str, Any], seed: int) -> str | Messages | None:
        """Begins the episode.

        Args:
            task: `prompt`, `ground_truth` and `columns` of the row that is played.
            seed: the same for all episodes of a group, which so have the same beginning.

        Returns:
            What the policy answers first: a user's text, or messages of which the last is not the
            assistant's. None is the row's own prompt.
        """
        raise NotImplementedError

    def step(self, response: str) -> tuple[str, float, bool]:
        """Takes what the policy wrote, without special tokens.

        Returns:
            What it reads next (nothing is read after the end), the reward of this turn, and whether
            the episode is over.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of what the episode holds; called once, however it ended."""


@dataclass(frozen=True)
class Opening:
    """How an episode begins.

    Attributes:
        messages: None is the row's own prompt.
        fault: why there is none, though there should be one.
    """

    messages: str | Messages | None = None
    fault: str = ""


@dataclass(frozen=True)
class Step:
    """What came of a response.

    Attributes:
        fault: why there is nothing else, though there should be.
    """

    observation: str = ""
    reward: float = 0.0
    done: bool = False
    fault: str = ""


def told(task: Task) -> dict[str, Any]:
    """A task as an environment gets it."""
    facts = task.facts
    return {
        "prompt": task.prompt,
        "ground_truth": facts.get("reference"),
        "columns": dict(facts.get("columns") or {}),
    }


def check_options(kind: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a shipped environment, with defaults for those left out.

    Raises:
        InputError: an unknown one, or another type than its default.
    """
    faults = [
        f"options of {kind} have no {key!r}{nearest(str(key), known)} (there are: "
        f"{', '.join(known)})"
        for key in given
        if key not in known
    ]
    for key, default in known.items():
        value = given.get(key, default)
        if type(value) is not type(default):
            wanted = _WORDS[type(default)]
            faults.append(f"options.{key}={value!r} of {kind}: write {wanted}, such as {default}")
    if faults:
        raise InputError(*faults)
    return {**known, **given}
