"""Numbers that a stage watched as it trained (`training.watching`), and the layer that is worst."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from fourstage.reporting.numbers import is_number
from fourstage.reporting.runfiles import StageFiles

# Of each layer; `update_ratio` stands for its groups. Then those of a whole model.
LAYERED = ("activation_rms", "activation_max", "attention_logit_max", "update_ratio")
SINGLE = ("logit_max", "log_z")

Place = tuple[str, float | None]


@dataclass(frozen=True)
class Look:
    """A watched number at a step.

    Attributes:
        value: that of the worst layer or group, the one furthest from 0; None if it is not finite.
        where: which one that is, "" for a number of a whole model; the first that is not finite.
        middle: the median of all layers or groups; None where there is one only.
    """

    step: float
    value: float | None
    where: str = ""
    middle: float | None = None


@dataclass(frozen=True)
class Watched:
    """A watched number over the steps, at one look or more."""

    name: str
    looks: list[Look]

    @property
    def last(self) -> Look:
        return self.looks[-1]

    @property
    def worst(self) -> Look:
        """The first look at a number that is not finite, else the one furthest from 0."""
        return next(
            (look for look in self.looks if look.value is None),
            max(self.looks, key=lambda look: abs(look.value or 0.0)),
        )


def watched(stage: StageFiles) -> list[Watched]:
    """The stage's gradient norm and what was watched of each of its models; none where no model
    was watched."""
    found = [
        Watched(prefix + name, looks)
        for prefix in _prefixes(stage)
        for name in (*LAYERED, *SINGLE)
        if (looks := _layered(stage, prefix, name) or _whole(stage, prefix + name))
    ]
    norms = _whole(stage, "gradient_norm")
    return [Watched("gradient_norm", norms), *found] if found and norms else found


def _prefixes(stage: StageFiles) -> list[str]:
    """What stands before the names of each model's numbers: "", and "critic." in PPO."""
    names = (name for row in (*stage.layers, *stage.rows) for name in row)
    marks = (name.removesuffix(LAYERED[0]) for name in names if name.endswith(LAYERED[0]))
    return list(dict.fromkeys(marks))


def _layered(stage: StageFiles, prefix: str, name: str) -> list[Look]:
    """The looks of watch.jsonl."""
    return [
        _look(float(row["step"]), places)
        for row in stage.layers
        if is_number(row.get("step")) and (places := list(_places(row, prefix, name)))
    ]


def _look(step: float, places: list[Place]) -> Look:
    lost = next((where for where, value in places if value is None), None)
    if lost is not None:
        return Look(step, None, lost)
    values = [value for _, value in places if value is not None]
    value = max(values, key=abs)
    where = places[values.index(value)][0]
    return Look(step, value, where, median(values) if len(values) > 1 else None)


def _places(row: dict[str, Any], prefix: str, name: str) -> Iterator[Place]:
    """The number of each layer of a model, or of each group of its parameters."""
    if name != "update_ratio":
        for layer, value in enumerate(_column(row, prefix + name)):
            yield f"layer {layer}", value
        return
    depth = len(_column(row, prefix + LAYERED[0]))
    for key in row:
        if not key.startswith(f"{prefix}{name}/"):
            continue
        column, kind = _column(row, key), key.rpartition("/")[2]
        # A frozen layer has no update, and some norms belong to none: then places are not layers.
        is_by_layer = kind in ("attention", "mlp") and len(column) == depth
        for layer, value in enumerate(column):
            yield f"{kind} of layer {layer}" if is_by_layer else kind, value


def _column(row: dict[str, Any], name: str) -> list[float | None]:
    column = row.get(name)
    values = column if isinstance(column, list) else []
    return [float(value) if is_number(value) else None for value in values]


def _whole(stage: StageFiles, name: str) -> list[Look]:
    """The looks of metrics.jsonl."""
    return [
        Look(float(row["step"]), float(row[name]) if is_number(row[name]) else None)
        for row in stage.rows
        if name in row and is_number(row.get("step"))
    ]
