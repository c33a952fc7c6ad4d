"""Which stages of a run are kept, continued or repeated, and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fourstage.files import explained
from fourstage.pipeline.lineage import Lineage, parents_of
from fourstage.recipe import Recipe

Action = Literal["keep", "continue", "start", "repeat"]
RESULTS = "results.json"
# What a stage's folder holds before the stage itself has done anything.
_CLOCK = "seconds.json"
_WORDS = {
    "section": "its section of the recipe changed",
    "seed": "the seed changed",
    "tokenizer": "the tokenizer changed",
    "data": "its data changed",
    "rewards": "a file of its rewards changed",
    "parents": "a model it is made from changed",
}


@dataclass(frozen=True)
class Decision:
    """What happens to a stage; the reason is a clause, empty where nothing needs one."""

    stage: str
    action: Action
    reason: str = ""


def decide(
    run: Path,
    recipe: Recipe,
    stages: list[str],
    lineage: Lineage,
    inputs: Callable[[str], Mapping[str, Any] | None],
) -> dict[str, Decision]:
    """A decision for each of `stages`, in order; nothing is touched.

    Args:
        inputs: stage -> what it would be made from now; None where that is not known because its
            data or tokenizer are to be prepared again.
    """
    found: dict[str, Decision] = {}
    for stage in stages:
        again = [
            parent
            for parent in parents_of(stage, recipe).values()
            if parent in found and found[parent].action != "keep"
        ]
        found[stage] = _decide(run / stage, lineage[stage], stage, again, inputs)
    return found


def _decide(
    folder: Path,
    record: Mapping[str, Any],
    stage: str,
    parents_again: list[str],
    inputs: Callable[[str], Mapping[str, Any] | None],
) -> Decision:
    if not _holds_work(folder):
        gone = record.get("status") == "finished"
        return Decision(stage, "start", "its folder is gone" if gone else "")
    if parents_again:
        return Decision(stage, "repeat", f"{' and '.join(parents_again)} is run again")
    if not record.get("inputs"):
        return Decision(stage, "repeat", "run.json does not say what it was made from")
    changed = differences(record["inputs"], inputs(stage))
    if changed:
        return Decision(stage, "repeat", changed)
    finished = (folder / RESULTS).exists() and (folder / "model" / "config.json").exists()
    return Decision(stage, "keep" if finished else "continue")


def _holds_work(folder: Path) -> bool:
    """Whether there is anything to keep or to set aside; a count of seconds alone is not."""
    return folder.is_dir() and any(path.name != _CLOCK for path in folder.iterdir())


def differences(before: Mapping[str, Any], now: Mapping[str, Any] | None) -> str:
    """What changed, in words; empty where nothing did."""
    if now is None:
        return "its data or the tokenizer are prepared again"
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return " and ".join(_WORDS.get(name, f"{name} changed") for name in names)


def set_aside(run: Path, stage: str) -> str:
    """Renames a stage's folder to the first free `<stage>.N`; returns the new name."""
    number = 1
    while (run / f"{stage}.{number}").exists():
        number += 1
    with explained(run / stage):
        os.rename(run / stage, run / f"{stage}.{number}")
    return f"{stage}.{number}"
