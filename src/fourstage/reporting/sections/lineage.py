"""Lineage: what each stage was made from, by content hash, and with which seed and versions."""

from __future__ import annotations

from typing import Any

from fourstage.reporting.html import Markup, escape, join, table, tag
from fourstage.reporting.numbers import NONE, duration, is_number, plain
from fourstage.reporting.runfiles import STAGES, TITLES, RunFiles

HASH_LENGTH = 12
OWN_ROWS = {"stages", "derived", "versions", "format"}


def section(run: RunFiles) -> Markup | None:
    if not run.lineage and not run.recipe_text:
        return None
    return join(_stages(run), _versions(run), _rest(run), _recipe(run))


def _stages(run: RunFiles) -> Markup | None:
    records = {stage: run.record(stage) for stage in STAGES}
    keys = list(dict.fromkeys(key for record in records.values() for key in record))
    if not keys:
        return None
    rows = [
        [_words(key), *(short(records[stage].get(key), key) for stage in STAGES)] for key in keys
    ]
    caption = f"What each stage was made from; hashes are SHA-256, the first {HASH_LENGTH} digits."
    return table(
        ["", *(TITLES[stage] for stage in STAGES)], rows, caption=caption, class_="four stack"
    )


def _versions(run: RunFiles) -> Markup | None:
    versions = run.lineage.get("versions")
    if not isinstance(versions, dict) or not versions:
        return None
    return tag(
        "p", "Versions: ", ", ".join(f"{name} {version}" for name, version in versions.items()), "."
    )


def _rest(run: RunFiles) -> Markup | None:
    rows = [
        [_words(key), short(value, key)]
        for key, value in run.lineage.items()
        if key not in OWN_ROWS
    ]
    return table(["", ""], rows, caption="The rest of run.json.", class_="stack") if rows else None


def _recipe(run: RunFiles) -> Markup | None:
    if not run.recipe_text:
        return None
    return tag("details", tag("summary", "recipe.yaml, resolved"), tag("pre", run.recipe_text))


def _words(key: Any) -> str:
    return str(key).replace("_", " ")


def short(value: Any, key: str = "") -> Markup:
    """A value of `run.json` as text: hashes shortened (whole on hover), seconds as time."""
    if isinstance(value, str) and is_hash(value):
        return tag("span", value.removeprefix("sha256:")[:HASH_LENGTH], title=value, class_="mono")
    if is_number(value) and key == "seconds":
        return escape(duration(value))
    if isinstance(value, dict) and value:
        lines = [join(f"{_words(name)}: ", short(item, str(name))) for name, item in value.items()]
        return join(*[piece for line in lines for piece in (tag("br"), line)][1:])
    if isinstance(value, list) and any(isinstance(item, str) and is_hash(item) for item in value):
        return join(*[piece for item in value for piece in (" ", short(item))][1:])
    if is_number(value) and key in ("seed", "step", "pid"):
        return escape(int(value))
    return plain(value) if value is not None else escape(NONE)


def is_hash(text: str) -> bool:
    digits = text.removeprefix("sha256:")
    return len(digits) in (40, 64) and all(digit in "0123456789abcdef" for digit in digits)
