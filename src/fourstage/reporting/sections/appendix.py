"""Every number of every stage, with its 95% interval."""

from __future__ import annotations

from fourstage.reporting.html import Markup, join, table, tag
from fourstage.reporting.numbers import NONE, figures
from fourstage.reporting.runfiles import STAGES, RunFiles


def section(run: RunFiles) -> Markup | None:
    parts = []
    for stage in STAGES:
        rows = []
        for name in run[stage].metrics:
            number = run[stage].number(name)
            if number is None:
                continue
            low = figures(number.low) if number.has_interval else NONE
            high = figures(number.high) if number.has_interval else NONE
            rows.append([tag("span", name, class_="mono"), figures(number.value), low, high])
        if rows:
            head = ["metric", "value", "95% low", "95% high"]
            parts.append(
                table(head, rows, caption=f"{run[stage].title}: results.json.", class_="numbers")
            )
    if not parts:
        return None
    return tag("details", tag("summary", "All metrics of all stages"), join(*parts))
