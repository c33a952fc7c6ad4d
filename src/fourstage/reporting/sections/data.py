"""The data: where each part comes from, what preparation kept and dropped, and why."""

from __future__ import annotations

from typing import Any

from fourstage.reporting.html import Markup, join, table, tag
from fourstage.reporting.numbers import compact, figures, is_number, plain, share
from fourstage.reporting.runfiles import RunFiles
from fourstage.reporting.sections.overview import PARTS, origin_of

NAMES = {
    "pretrain": "text",
    "sft": "demonstrations",
    "preferences": "comparisons",
    "prompts": "prompts",
}


def section(run: RunFiles) -> Markup | None:
    origins = {part: origin_of(run, part) for part in PARTS}
    if not run.data and not any(origins.values()):
        return None
    return join(_origins(origins), _sources(run), _steps(run))


def _origins(origins: dict[str, str]) -> Markup | None:
    made = [NAMES[part] for part, origin in origins.items() if origin == "made from the text"]
    given = [
        f"{NAMES[part]} {origin}"
        for part, origin in origins.items()
        if origin and NAMES[part] not in made
    ]
    if not made and not given:
        return None
    sentences = [f"Given: {'; '.join(given)}."] if given else []
    if made:
        sentences.append(f"Made from the text itself: {', '.join(made)}.")
    return tag("p", " ".join(sentences))


def _sources(run: RunFiles) -> Markup | None:
    """What was kept of each source of text, and how often a run reads it (as LLaMA's table 1)."""
    read = run.data.get("corpus", {}).get("sources", {})
    if not read:
        return None
    tokens = run.data.get("pretrain", {}).get("sources", {})
    drawn = {row["source"]: row for row in run["pretrain"].results.get("mixture", [])}
    rows = []
    for name in dict.fromkeys((*read, *drawn)):
        counts = read.get(name, {})
        row = drawn.get(name, {})
        kept = counts.get("train", 0) + counts.get("validation", 0)
        share_told = share(row["share"]) if "share" in row else ""
        epochs = f"{row['epochs']:.2f}" if row.get("epochs") is not None else ""
        numbers = [figures(counts.get("read", 0)), figures(kept)]
        held = figures(tokens[name]) if name in tokens else ""
        rows.append([name, *numbers, held, share_told, epochs])
    return table(["source", "read", "kept", "tokens", "share", "epochs"], rows)


def _steps(run: RunFiles) -> Markup | None:
    parts = []
    for name, entry in run.data.items():
        rows = list(_flatten(entry))
        if rows:
            cells = [[tag("span", key, class_="mono"), value] for key, value in rows]
            parts.append(join(tag("h3", name), table(["", ""], cells, class_="stack")))
    if not parts:
        return None
    return tag("details", tag("summary", "What each step of preparation kept and dropped"), parts)


def _flatten(entry: Any, prefix: str = "", depth: int = 0) -> list[tuple[str, Markup]]:
    """The leaves of a nested report as `(dotted key, text)`, lists of records item by item."""
    if isinstance(entry, dict) and depth < 4:
        found = []
        for key, value in entry.items():
            found += _flatten(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
        return found
    if isinstance(entry, list) and any(isinstance(item, dict) for item in entry):
        found = []
        for index, item in enumerate(entry[:50]):
            found += _flatten(item, f"{prefix}[{index}]", depth + 1)
        return found
    return [(prefix, plain(entry) if not is_number(entry) else tag("span", _count(entry)))]


def _count(value: float) -> str:
    return figures(value) if abs(value) < 1e6 else f"{figures(value)} ({compact(value)})"
