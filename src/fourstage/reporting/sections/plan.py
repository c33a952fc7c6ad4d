"""What was planned beside what was spent."""

from __future__ import annotations

from typing import Any

from fourstage.reporting.html import Markup, join, table, tag
from fourstage.reporting.numbers import (
    NONE,
    compact,
    duration,
    is_number,
    plain,
    power_of_ten,
    share,
    storage,
)
from fourstage.reporting.runfiles import STAGES, RunFiles

MEASURES = (
    ("seconds", "time", duration),
    ("tokens", "tokens", compact),
    ("flops", "FLOP", power_of_ten),
    ("memory_bytes", "memory", storage),
)


def planned(run: RunFiles, stage: str) -> dict[str, Any]:
    """The stage's entry in the `stages` of `plan.json`, a dict or a list of `{"stage": name}`."""
    stages = run.plan.get("stages")
    if isinstance(stages, list):
        found = next(
            (e for e in stages if isinstance(e, dict) and stage in (e.get("stage"), e.get("name"))),
            {},
        )
    else:
        found = stages.get(stage) if isinstance(stages, dict) else run.plan.get(stage)
    return found if isinstance(found, dict) else {}


def section(run: RunFiles) -> Markup | None:
    if not run.plan and not any(run.setting(f"{stage}.steps") for stage in STAGES):
        return None
    return join(_against(run), _derived(run))


def _against(run: RunFiles) -> Markup | None:
    rows = []
    for stage in STAGES:
        plan = planned(run, stage)
        for key, name, write in MEASURES:
            wanted, spent = plan.get(key), run[stage].total(key)
            if is_number(wanted) and wanted:
                ratio = share(spent / wanted, 0) if spent else NONE
                rows.append(
                    [
                        f"{run[stage].title}: {name}",
                        write(wanted),
                        write(spent) if spent else NONE,
                        ratio,
                    ]
                )
    if not rows:
        return None
    caption = "The plan made before the run, and what the run took."
    return table(
        ["", "planned", "actual", "actual / planned"], rows, caption=caption, class_="numbers stack"
    )


def _derived(run: RunFiles) -> Markup | None:
    """Every value that a rule filled in, with the rule, from `plan.json` or `run.json`."""
    found = run.plan.get("derived") or run.lineage.get("derived")
    rows = []
    for item in found if isinstance(found, list) else []:
        if isinstance(item, dict) and "key" in item:
            rows.append(
                [
                    tag("span", item["key"], class_="mono"),
                    plain(item.get("value")),
                    plain(item.get("rule")),
                ]
            )
    if not rows:
        return None
    inside = table(
        ["key", "value", "rule"], rows, caption="Values the recipe left out, and the rule of each."
    )
    return tag("details", tag("summary", f"Values derived by rule ({len(rows)})"), inside)
