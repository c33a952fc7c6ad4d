"""What a stage's guards saw and did, and the numbers that show trouble before the loss does."""

from __future__ import annotations

from fourstage.reporting.alarms import alarms
from fourstage.reporting.charts import Chart, Series
from fourstage.reporting.events import events, flags
from fourstage.reporting.figures import panels
from fourstage.reporting.html import Markup, join, table, tag
from fourstage.reporting.numbers import figures
from fourstage.reporting.runfiles import StageFiles
from fourstage.reporting.watched import Look, Watched, watched

EVENTS_SHOWN = 20
# From this ratio of the largest to the smallest on, an axis is logarithmic.
WIDE_RANGE = 20

TITLES = {
    "gradient_norm": "gradient norm",
    "activation_rms": "activation, root mean square",
    "activation_max": "activation, largest",
    "attention_logit_max": "attention logit, bound",
    "update_ratio": "size of update over weights",
    "logit_max": "logit, largest",
    "log_z": "log Z of the softmax",
}


def stability(stage: StageFiles) -> Markup:
    """The end of a stage's section: its events, if there were any, and what it watched, folded."""
    return join(_happened(stage), _watched(stage))


def marked(stage: StageFiles, caption: str) -> str:
    """The caption of a chart with the stage's flags."""
    if not events(stage.rows):
        return caption
    return f"{caption} Upright lines: events, told below; hollow: told only."


def _happened(stage: StageFiles) -> Markup | None:
    found = events(stage.rows)
    if not found:
        return None
    rows = [[figures(event.step), event.seen, event.done] for event in found[:EVENTS_SHOWN]]
    alarmed = stage.name == "rl" and len(alarms(stage.rows)) > 0
    if len(found) > EVENTS_SHOWN:
        rows.append(["", f"and {len(found) - EVENTS_SHOWN} more in metrics.jsonl", ""])
    caption = (
        "What happened: steps that spiked or were not finite. "
        "Spikes in neighbouring steps are told once."
    )
    if alarmed:
        caption += " Alarms are told once, where they are first seen, with what to do."
    heads = ["step", "seen", "done, or what to do" if alarmed else "done"]
    return table(heads, rows, caption=caption, class_="stack")


def _watched(stage: StageFiles) -> Markup | None:
    numbers = watched(stage)
    if not numbers:
        return None
    rows = [[_title(each.name), _at(each.last), _at(each.worst, step=True)] for each in numbers]
    last = figures(max(each.last.step for each in numbers))
    return tag(
        "details",
        tag("summary", f"What was watched of activations, logits and updates, to step {last}"),
        panels(
            [_chart(stage, each) for each in numbers],
            "Blue: the largest of all layers or groups of parameters, with its name at the end; "
            "grey: their median. Layers count from 0.",
            small=True,
        ),
        table(
            ["number", "at the end", "furthest from 0"],
            rows,
            caption="What was watched, with the layer or group that it was worst in.",
            class_="stack",
        ),
    )


def _chart(stage: StageFiles, number: Watched) -> Chart:
    finite = [look for look in number.looks if look.value is not None]
    points = [(look.step, look.value) for look in finite if look.value is not None]
    middles = [(look.step, look.middle) for look in finite if look.middle is not None]
    heights = [height for _, height in points + middles]
    lines = [Series("", middles, "grey")] if middles else []
    title = _title(number.name)
    return Chart(
        [*lines, Series(finite[-1].where if finite else "", points, 0)],
        "step",
        title,
        f"{stage.title}: {title} over the steps",
        y_log=bool(heights) and 0 < WIDE_RANGE * min(heights) < max(heights),
        flags=flags(stage.rows),
    )


def _title(name: str) -> str:
    model, _, number = name.rpartition(".")
    return f"{model}: {TITLES[number]}" if model else TITLES[number]


def _at(look: Look, step: bool = False) -> str:
    """`16.6 in layer 1, step 79`."""
    where = f" in {look.where}" if look.where else ""
    value = "not finite" if look.value is None else figures(look.value)
    return f"{value}{where}, step {figures(look.step)}" if step else f"{value}{where}"
