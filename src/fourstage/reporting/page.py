"""The page: sections in order, one style, nothing from outside."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from fourstage.files import write_text
from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.runfiles import RunFiles, read_run
from fourstage.reporting.sections import (
    appendix,
    data,
    lineage,
    overview,
    plan,
    pretraining,
    reward,
    rl,
    samples,
    sft,
)

SECTIONS: tuple[tuple[str, str, Callable[[RunFiles], Markup | None]], ...] = (
    ("pretraining", "Pretraining", pretraining.section),
    ("sft", "Supervised fine-tuning", sft.section),
    ("reward", "Reward modelling", reward.section),
    ("rl", "Reinforcement learning", rl.section),
    ("samples", "Samples", samples.section),
    ("plan", "Plan and actual", plan.section),
    ("data", "Data", data.section),
    ("lineage", "Lineage", lineage.section),
    ("numbers", "All numbers", appendix.section),
)


def build_report(run: Path) -> Path:
    """Writes `report.html` into the run folder from the run's files; returns its path.

    Raises:
        InputError: `run` is not the folder of a run.
        MachineError: the page cannot be written.
    """
    path = Path(run) / "report.html"
    write_text(path, render(read_run(Path(run))))
    return path


def render(run: RunFiles) -> str:
    """The whole page as text."""
    parts = [(key, title, body) for key, title, make in SECTIONS if (body := make(run))]
    links = [tag("a", title, href=f"#{key}") for key, title, _ in parts]
    style = resources.files("fourstage.reporting").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"{run.name}: four stages"),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("header", overview.headline(run)),
        tag("nav", join(*[piece for link in links for piece in (" ", link)])) if links else None,
        tag(
            "main",
            overview.four_stages(run),
            overview.scoreboard(run),
            (tag("section", tag("h2", title), body, id=key) for key, title, body in parts),
        ),
        tag(
            "footer",
            "Made by fourstage from the files of this run alone. "
            "Intervals are 95% bootstrap intervals over held-out items.",
        ),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


# Even if a sample were not escaped, the browser would run and fetch nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
