"""A task: a prompt whose answers a program can check, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

_CHECKERS = {"world": "fourstage.worlds.calibration", "made": "fourstage.data.made"}

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Task:
    """One instruction. `facts["checker"]` names who judges it; the other facts are the judge's."""

    prompt: str | Messages
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "kind": self.kind, "facts": self.facts}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Task:
        return cls(row["prompt"], row["kind"], row["facts"])


def _judge(task: Task) -> ModuleType:
    checker = task.facts.get("checker")
    if checker not in _CHECKERS:
        raise ValueError(f"a task of kind {task.kind!r} names no known checker: {checker!r}")
    return import_module(_CHECKERS[checker])


def success(task: Task, response: str) -> bool:
    """Whether `response` does what the task asks."""
    return bool(_judge(task).success(task, response))


def gold(task: Task, response: str) -> float:
    """The hidden quality of `response`, in [0, 1]; measured, never trained on."""
    return float(_judge(task).gold(task, response))


def best_gold(task: Task) -> float:
    """The gold of the best response that exists: the ceiling of this task."""
    return float(_judge(task).best_gold(task))


def success_rate(tasks: Sequence[Task], responses: Sequence[str]) -> float:
    """The share of `responses` that do what their tasks ask."""
    pairs = zip(tasks, responses, strict=True)
    return sum(success(task, response) for task, response in pairs) / max(1, len(tasks))
