"""One prompt through the stages, and the base model as it learns to write."""

from __future__ import annotations

from typing import Any

from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import compact, is_number
from fourstage.reporting.runfiles import PRODUCTS, STAGES, RunFiles

TEXT_KEYS = ("completion", "response", "text", "sample", "output")
PROMPTS_SHOWN = 4
MOST_CHARACTERS = 900


def prompt_of(row: dict[str, Any]) -> str:
    """The prompt of a sample row: a string, or the last user turn of a list of messages."""
    prompt = row.get("prompt", "")
    if isinstance(prompt, list):
        turns = [turn.get("content", "") for turn in prompt if isinstance(turn, dict)]
        return str(turns[-1]) if turns else ""
    return str(prompt)


def text_of(row: dict[str, Any]) -> str | None:
    """What the model wrote: the first of the usual keys that the row has."""
    value = next((row[key] for key in TEXT_KEYS if isinstance(row.get(key), str)), None)
    return value


def section(run: RunFiles) -> Markup | None:
    through, growing = _through_the_stages(run), _growing(run)
    if through is None and growing is None:
        return None
    return join(through, growing)


def _last_by_prompt(run: RunFiles) -> dict[str, dict[str, dict[str, Any]]]:
    """{prompt: {stage: its last sample row}}, in the order in which prompts first occur."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in STAGES:
        for row in run[stage].samples:
            if text_of(row) is not None:
                found.setdefault(prompt_of(row), {})[stage] = row
    return found


def _through_the_stages(run: RunFiles) -> Markup | None:
    prompts = _last_by_prompt(run)
    shared = [(prompt, rows) for prompt, rows in prompts.items() if len(rows) > 1]
    shared.sort(key=lambda item: -len(item[1]))
    chosen = (
        shared[:PROMPTS_SHOWN]
        or [(prompt, rows) for prompt, rows in prompts.items() if "pretrain" not in rows][
            :PROMPTS_SHOWN
        ]
    )
    if not chosen:
        return None
    cards = [
        tag(
            "div",
            tag("p", shown(prompt), class_="prompt"),
            tag(
                "dl", (_answer(PRODUCTS[s], rows[s], i) for i, s in enumerate(STAGES) if s in rows)
            ),
            class_="sample",
        )
        for prompt, rows in chosen
    ]
    return join(
        tag("h3", "The same prompt through the stages"),
        tag("div", cards, class_="samples"),
    )


def _growing(run: RunFiles) -> Markup | None:
    """The first prompt of pretraining at the first step, some between, and the last."""
    rows = [row for row in run["pretrain"].samples if text_of(row) is not None]
    if not rows:
        return None
    prompt = prompt_of(rows[0])
    same = [row for row in rows if prompt_of(row) == prompt]
    if len(same) < 2:
        return None
    places = sorted({round(place * (len(same) - 1) / 4) for place in range(5)})
    entries = []
    for place in places:
        row = same[place]
        at = f"step {compact(row['step'])}" if is_number(row.get("step")) else f"sample {place + 1}"
        entries += [
            tag("dt", at),
            tag("dd", tag("span", prompt, class_="given"), shown(text_of(row) or "")),
        ]
    return join(
        tag("h3", "The base model as it learns: characters, words, grammar"),
        tag("div", tag("div", tag("dl", entries), class_="sample"), class_="samples"),
        tag("p", "The prompt is in grey; what follows is the model’s.", class_="soft"),
    )


def _answer(name: str, row: dict[str, Any], index: int) -> Markup:
    notes = [
        f"{label} {row[key]:.2f}"
        for key, label in (("reward", "score"), ("gold", "gold"))
        if is_number(row.get(key))
    ]
    return join(
        tag("dt", tag("span", name, class_=f"n{index}"), f" {', '.join(notes)}" if notes else None),
        tag("dd", shown(text_of(row) or "")),
    )


def shown(text: str) -> str:
    """The text without trailing space, cut with a mark if it is very long."""
    text = text.rstrip()
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " […]"
