"""The files of a run, read so that a missing or cut one costs its own part of the page only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fourstage.errors import InputError
from fourstage.reporting.numbers import Number, is_number

STAGES = ("pretrain", "sft", "reward", "rl")
TITLES = {
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "reward": "Reward modelling",
    "rl": "Reinforcement learning",
}
PRODUCTS = {"pretrain": "base", "sft": "SFT", "reward": "reward", "rl": "RL"}


@dataclass
class StageFiles:
    """One stage's folder; each file may be absent.

    Attributes:
        rows, layers, samples, results: its metrics.jsonl, watch.jsonl, samples.jsonl, results.json.
        measured: what evaluation/*.json hold before results.json is there.
        model: the model's config.json. clock: its seconds.json.
    """

    name: str
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    clock: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name)

    @property
    def finished(self) -> bool:
        return bool(self.results)

    @property
    def begun(self) -> bool:
        return self.finished or bool(self.rows)

    @property
    def metrics(self) -> dict[str, float]:
        found = (self.results or self.measured).get("metrics")
        items = found.items() if isinstance(found, dict) else ()
        return {name: float(value) for name, value in items if is_number(value)}

    def number(self, *names: str) -> Number | None:
        """The first of these metrics that `results.json` has, with its interval."""
        for name in names:
            if name in self.metrics:
                return Number(self.metrics[name], *self._interval(name))
        return None

    def _interval(self, name: str) -> tuple[float | None, float | None]:
        intervals = (self.results or self.measured).get("intervals")
        found = intervals.get(name) if isinstance(intervals, dict) else None
        if isinstance(found, list | tuple) and len(found) == 2 and all(map(is_number, found)):
            return float(found[0]), float(found[1])
        return None, None

    def by_kind(self, name: str) -> dict[str, Number]:
        """`{kind: number}` of the metrics called `name/kind`."""
        found = {}
        for metric in self.metrics:
            stem, _, kind = metric.partition("/")
            number = self.number(metric)
            if stem == name and kind and number:
                found[kind] = number
        return found

    def total(self, name: str) -> float | None:
        """`seconds`, `tokens` or `flops` of `results.json`, else of the clock or the last row."""
        value = self.results.get(name)
        if is_number(value):
            return float(value)
        if is_number(self.clock.get(name)):
            return float(self.clock[name])
        values = [row[name] for row in self.rows if is_number(row.get(name))]
        return float(values[-1]) if values else None

    def column(self, name: str, against: str = "step") -> list[tuple[float, float]]:
        """The points `(row[against], row[name])` of the rows that have both as finite numbers."""
        return [
            (float(row[against]), float(row[name]))
            for row in self.rows
            if is_number(row.get(name)) and is_number(row.get(against))
        ]

    def first_column(self, *names: str, against: str = "step") -> list[tuple[float, float]]:
        """The points of the first of these columns that has any."""
        return next((points for name in names if (points := self.column(name, against))), [])


@dataclass
class RunFiles:
    """Everything that the page is made of; `study` is a study's study.json, where there is one."""

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    lineage: dict[str, Any]
    data: dict[str, Any]
    plan: dict[str, Any]
    stages: dict[str, StageFiles]
    faults: list[str]
    study: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.recipe.get("name") or self.folder.resolve().name)

    def __getitem__(self, stage: str) -> StageFiles:
        return self.stages[stage]

    def setting(self, path: str) -> Any:
        """A field of the recipe by its dotted path, or None."""
        value: Any = self.recipe
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def record(self, stage: str) -> dict[str, Any]:
        """A stage's entry in `run.json`."""
        stages = self.lineage.get("stages")
        found = stages.get(stage) if isinstance(stages, dict) else None
        return found if isinstance(found, dict) else {}

    def reward_parts(self) -> list[str]:
        """The kinds of `rl.rewards`; none where a reward model alone counts."""
        parts = self.setting("rl.rewards")
        kinds = [part.get("kind") for part in parts or [] if isinstance(part, dict)]
        return [kind for kind in kinds if isinstance(kind, str)]

    def asks_a_reward_model(self) -> bool:
        kinds = self.reward_parts()
        return not kinds or "model" in kinds

    def status(self, stage: str) -> str:
        """`finished`, `unfinished`, `not needed` or `not begun`, or what `run.json` says of an
        unfinished one."""
        if self[stage].finished:
            return "finished"
        said = self.record(stage).get("status")
        if isinstance(said, str) and said:
            return said
        if stage == "reward" and not self.asks_a_reward_model() and not self[stage].begun:
            return "not needed"
        return "unfinished" if self[stage].begun else "not begun"


def read_run(folder: Path) -> RunFiles:
    """Reads what there is of a run.

    Raises:
        InputError: `folder` does not exist or has none of the files that mark a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a run, such as runs/smoke")
    faults: list[str] = []
    marks = [folder / "run.json", folder / "recipe.yaml"]
    marks += [
        folder / stage / name for stage in STAGES for name in ("results.json", "metrics.jsonl")
    ]
    if not any(mark.is_file() for mark in marks):
        raise InputError(
            f"{folder}: not a run (it has no run.json, recipe.yaml or stage); "
            "give a folder that `fourstage run` made, such as runs/smoke"
        )
    recipe_text = _text(folder / "recipe.yaml", faults)
    return RunFiles(
        folder=folder,
        recipe=_yaml(recipe_text, faults),
        recipe_text=recipe_text,
        lineage=_json(folder / "run.json", faults),
        data=_json(folder / "data" / "report.json", faults),
        plan=_json(folder / "plan.json", faults),
        stages={stage: _stage(folder, stage, faults) for stage in STAGES},
        faults=faults,
        study=_json(folder / "study" / "study.json", faults),
    )


def _stage(run: Path, name: str, faults: list[str]) -> StageFiles:
    folder = run / name
    return StageFiles(
        name,
        folder,
        rows=_lines(folder / "metrics.jsonl", run, faults),
        layers=_lines(folder / "watch.jsonl", run, faults),
        samples=_lines(folder / "samples.jsonl", run, faults),
        results=_json(folder / "results.json", faults),
        measured=_measured(folder / "evaluation", faults),
        model=_json(folder / "model" / "config.json", faults),
        clock=_json(folder / "seconds.json", faults),
    )


def _measured(folder: Path, faults: list[str]) -> dict[str, Any]:
    """What an unfinished stage has measured already: its `evaluation/*.json` put together."""
    together: dict[str, Any] = {"metrics": {}, "intervals": {}}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        found = _json(path, faults)
        for part, held in together.items():
            held.update(found[part] if isinstance(found.get(part), dict) else {})
    return together if together["metrics"] else {}


def _text(path: Path, faults: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        faults.append(f"{path.name} could not be read: {error.strerror}")
        return ""


def _json(path: Path, faults: list[str]) -> dict[str, Any]:
    text = _text(path, faults)
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        faults.append(f"{path.parent.name}/{path.name} is not whole JSON and was passed over")
        return {}
    return value if isinstance(value, dict) else {}


def _yaml(text: str, faults: list[str]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        faults.append("recipe.yaml is not YAML and was passed over")
        return {}
    return value if isinstance(value, dict) else {}


def _lines(path: Path, run: Path, faults: list[str]) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that a kill has cut is no fault."""
    lines = [line for line in _text(path, faults).splitlines() if line.strip()]
    rows, bad = [], 0
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            bad += number < len(lines) - 1
            continue
        if isinstance(row, dict):
            rows.append(row)
    if bad:
        faults.append(f"{path.relative_to(run)}: {bad} unreadable rows were passed over")
    return rows
