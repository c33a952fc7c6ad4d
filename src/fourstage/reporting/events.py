"""What happened in a stage, in words: the guards' rows (`training.events`), and alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fourstage.reporting.alarms import alarms
from fourstage.reporting.charts import LARGEST, Flag
from fourstage.reporting.numbers import figures, is_number

# The reaction that changes nothing: a spike that is only told of.
_TOLD = "warning"


@dataclass(frozen=True)
class Event:
    """One event of a stage.

    Attributes:
        step, tokens: where it stands among the rows of metrics.jsonl; either may be unknown.
        seen: the number that was far from the usual, or the first tensor or layer not finite.
        done: what was done about it; of an alarm what to do.
        is_told: whether it was only told of, and the update applied.
    """

    step: float | None
    tokens: float | None
    seen: str
    done: str
    is_told: bool

    def at(self, against: str) -> float | None:
        """Its place on an axis of `step` or `tokens`."""
        return self.tokens if against == "tokens" else self.step

    def __str__(self) -> str:
        return f"step {figures(self.step)}: {self.seen}; {self.done}"


def events(rows: Sequence[dict[str, Any]]) -> list[Event]:
    """The events among the rows of metrics.jsonl and the alarms that they raise, by step."""
    guarded = [
        Event(
            row["step"] if is_number(row.get("step")) else None,
            row["tokens"] if is_number(row.get("tokens")) else None,
            _seen(row),
            _done(row),
            row["event"] == _TOLD,
        )
        for row in rows
        if isinstance(row.get("event"), str)
    ]
    raised = [Event(a.step, a.tokens, a.what, a.remedy, is_told=True) for a in alarms(rows)]
    if not raised:
        return guarded
    return sorted([*guarded, *raised], key=lambda event: event.step or 0.0)


def flags(rows: Sequence[dict[str, Any]], against: str = "step") -> list[Flag]:
    """The events as flags of a chart over `step` or `tokens`."""
    return [
        Flag(at, str(event), hollow=event.is_told)
        for event in events(rows)
        if (at := event.at(against)) is not None and abs(at) < LARGEST
    ]


def _seen(row: dict[str, Any]) -> str:
    cause = str(row.get("cause", "")).replace("_", " ")
    value, usual, away = (_number(row, name) for name in ("value", "usual", "deviations"))
    if value is not None:
        words = f"{cause} {figures(value)}"
        if away is not None and usual is not None:
            words += f", {figures(away, 1)} deviations above the usual {figures(usual)}"
    else:
        words = ": ".join(part for part in (cause, str(row.get("detail", ""))) if part)
    spiked = _number(row, "from_step")
    return words if spiked is None else f"at step {figures(spiked)} {words}"


def _done(row: dict[str, Any]) -> str:
    event = row["event"]
    if event == _TOLD:
        return "told; the update was applied"
    if event == "skip":
        return "the update was left out"
    if event == "lower_rate":
        # A step that is not finite is never applied (`training.events.react`).
        was = "left out" if row.get("cause") == "not_finite" else "applied"
        rate = figures(_number(row, "rate"))
        return f"{was}; from here on the learning rate is {rate} of the schedule’s"
    if event == "rollback":
        words = f"went back to step {figures(_number(row, 'to_step'))}"
        batches = row.get("batches")
        if isinstance(batches, list) and len(batches) == 2 and all(map(is_number, batches)):
            first, last = map(figures, batches)
            words += f", and on without batches {first} to {last}"
        return words
    return event.replace("_", " ")


def _number(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    return value if is_number(value) else None
