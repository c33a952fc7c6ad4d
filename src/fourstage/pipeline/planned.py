"""plan.json: what each stage was expected to take, kept to be compared with what it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fourstage.data.counting import with_counts
from fourstage.files import read_json, write_json
from fourstage.pipeline.datasets import Datasets
from fourstage.pipeline.decisions import Decision
from fourstage.planning.plan import measured_plan
from fourstage.training.progress import clock_time

NAME = "plan.json"


def keep_plan(
    run: Path,
    datasets: Datasets,
    decisions: Mapping[str, Decision],
    devices: int,
    say: Callable[[str], None],
) -> None:
    """Plans the stages that start now; one that goes on keeps the plan it began with.

    The machine's speed is measured, in a second or two, on the very model. Nothing of a run but
    this file depends on what is measured.
    """
    before = _read(run / NAME)
    planned: dict[str, Any] = before.get("stages", {})
    begins = [
        stage
        for stage, decision in decisions.items()
        if decision.action in ("start", "repeat")
        or (decision.action == "continue" and stage not in planned)
    ]
    if not begins:
        return
    # Rows of what is prepared are known; those of other files are counted.
    facts, _ = with_counts(datasets.recipe, datasets.facts())
    plan = measured_plan(datasets.recipe, facts, datasets.device, devices=devices, stages=begins)
    content = plan.to_json()
    content["stages"] = planned | content["stages"]
    write_json(run / NAME, content)
    say(
        f"plan: {' '.join(begins)} in about {clock_time(plan.seconds)}, at most "
        f"{plan.memory_bytes / 1e6:,.0f} MB beside Python's own"
    )


def _read(path: Path) -> dict[str, Any]:
    """A plan is news, not state: one that is unreadable is made again."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
