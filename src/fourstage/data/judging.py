"""What a reward model asks of a person's rows: which kinds, which heads, which numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fourstage.data.shapes.answered import as_label
from fourstage.data.shapes.row import Row
from fourstage.data.shapes.values import Columns, number, plain_text
from fourstage.recipe.rewarding import RewardKind
from fourstage.recipe.schema import Recipe

# The first names what is asked for.
_KINDS = {
    "bradley_terry": ("comparison", "ranking"),
    "regression": ("scored", "dialogue", "ranking", "unpaired"),
    "binary": ("unpaired", "dialogue"),
    "process": ("stepwise",),
}


def kinds_for(section: RewardKind) -> tuple[str, ...]:
    """Kinds of rows that an objective learns from."""
    return _KINDS[section.objective]


class Judging:
    """Reads beside a row which head it is about, its scores by head, and its category."""

    def __init__(self, section: RewardKind):
        self.objective, self.heads = section.objective, tuple(section.heads)
        self.keeps_ties = section.ties != "drop"

    def annotated(self, row: Row, value: Any, mapping: Mapping[str, str]) -> Row:
        """The row with what its other keys say."""
        if not isinstance(value, dict):
            return row
        columns = Columns(value, mapping)
        found: dict[str, Any] = {"category": (plain_text(columns.get("category")) or "").strip()}
        if self.heads:
            found["head"] = (plain_text(columns.get("head")) or "").strip()
        if self.heads and self.objective != "bradley_terry":
            numbers = {name: self._number(columns.get(name)) for name in self.heads}
            found["attributes"] = {k: v for k, v in numbers.items() if v is not None}
        return dataclasses.replace(row, **found)

    def _number(self, value: Any) -> float | None:
        found = number(value)
        if self.objective == "binary" and (found is None or not 0 <= found <= 1):
            label = as_label(value)
            return None if label is None else float(label)
        return found

    def fault(self, row: Row) -> str:
        """Why a row of a kind that is taken teaches this objective nothing; "" where it does."""
        if self.objective == "bradley_terry":
            return self._fault_of_comparison(row)
        if self.heads and not row.attributes and row.head not in self.heads:
            return f"none of {', '.join(self.heads)} (reward.heads) has a number here"
        if self.objective == "regression" and not (row.scores or row.attributes):
            return "this answer has no score: add the key 'score', or name it with data.map.score"
        if self.objective == "binary" and row.label is None and not row.attributes:
            return "this answer has no label: add the key 'label', or name it with data.map.label"
        return ""

    def _fault_of_comparison(self, row: Row) -> str:
        if self.heads and row.head not in self.heads:
            heads = ", ".join(self.heads)
            if not row.head:
                return (
                    f"reward.heads are {heads}, and this row does not say which it is about: add "
                    "the key 'head', or name it with data.map.head"
                )
            return f"this row is about {row.head!r}; reward.heads are {heads}"
        return ""


def judged_inputs(recipe: Recipe) -> dict[str, Any]:
    """What of `reward` decides its rows, or that there are none; nothing of plain comparisons."""
    section = recipe.reward
    told: dict[str, Any] = {}
    if section.objective != "bradley_terry":
        told["objective"] = section.objective
    asks = bool(section.heads) or section.ties != "drop"
    if asks or recipe.data.origin("preferences") == "files":
        told |= {"heads": sorted(section.heads), "ties": section.ties != "drop"}
    return told
