"""study.html: the figures, the laws and the numbers of a study, self-contained."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fourstage.reporting.html import Markup, table, tag
from fourstage.reporting.numbers import Number, figures, measured
from fourstage.reporting.overoptimisation import study_figures
from fourstage.reporting.page import POLICY


def page(study: dict[str, Any]) -> str:
    """The page of what study.json holds, finished or not."""
    title = f"Over-optimisation of {study['run']}"
    style = resources.files("fourstage.reporting").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("h1", title),
        tag("p", _words(study)),
        study_figures(study),
        (_numbers(told) for told in study["best_of_n"]),
        _ends(study),
        tag(
            "footer",
            "Made by fourstage. Intervals are 95% bootstrap intervals over held-out prompts. "
            "After Gao, Schulman and Hilton, Scaling Laws for Reward Model Overoptimization, 2022.",
        ),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _words(study: dict[str, Any]) -> str:
    return (
        f"What more of the proxy does to gold: {figures(study['samples'])} responses of the SFT "
        f"model to each of {figures(study['prompts'])} held-out prompts at temperature "
        f"{study['temperature']:g}. Gold is what {study['gold']} says; the proxy is the reward "
        "model that reinforcement learning is paid by. Where the proxy rises and gold falls, its "
        "errors are being exploited."
    )


def _numbers(told: dict[str, Any]) -> Markup:
    columns = (told["n"], told["kl"], told["kl_estimated"], told["proxy"], told["gold"])
    rows = [
        [figures(n), figures(kl, 2), figures(estimated, 2), _cell(proxy), _cell(gold)]
        for n, kl, estimated, proxy, gold in zip(*columns, strict=True)
    ]
    header = ["n", "KL at most", "KL as drawn", "proxy", "gold"]
    return table(header, rows, caption=f"Best of n by {told['name']}.", class_="numbers")


def _ends(study: dict[str, Any]) -> Markup | None:
    rows = [
        [told["name"], *(_cell(told["end"][name]) for name in ("kl", "proxy", "gold"))]
        for told in study["rl"]
    ]
    if not rows:
        return None
    caption = "Policies at the end of RL, on the held-out prompts."
    return table(["policy", "KL", "proxy", "gold"], rows, caption=caption, class_="numbers")


def _cell(told: list[float]) -> Markup:
    return measured(Number(*told))
