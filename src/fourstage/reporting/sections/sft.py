"""SFT: what the base model could do, what a few examples draw out of it, what training adds."""

from __future__ import annotations

from fourstage.reporting.charts import Chart, Series
from fourstage.reporting.dots import Dot, DotChart, Row, interval_note
from fourstage.reporting.events import flags
from fourstage.reporting.figures import colour_key, dot_figure, noisy, panels
from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import measured
from fourstage.reporting.runfiles import RunFiles, StageFiles
from fourstage.reporting.sections.stability import marked, stability

STEPS = (
    ("base_task_success", "base model", "grey"),
    ("base_few_shot_task_success", "base, 3 examples", 0),
    ("task_success", "SFT model", 1),
)


def section(run: RunFiles) -> Markup | None:
    stage = run["sft"]
    if not stage.begun:
        return None
    return join(_words(stage), _success(stage), _kinds(stage), _curves(stage), stability(stage))


def _words(stage: StageFiles) -> Markup | None:
    base, few, after = (stage.number(name) for name, *_ in STEPS)
    if not after:
        return None
    parts = [
        "After fine-tuning the model does ",
        measured(after),
        " of held-out instructions right",
    ]
    if base:
        parts += [", where the base model did ", measured(base)]
    if few:
        parts += [" and, shown three examples as plain text, ", measured(few)]
    return tag("p", parts, ".")


def _success(stage: StageFiles) -> Markup | None:
    rows = [
        Row(label, [Dot(number, colour)], None, interval_note(number))
        for name, label, colour in STEPS
        if (number := stage.number(name))
    ]
    chart = DotChart(
        rows, "task success", "Task success of base, few-shot and SFT", x_range=(0.0, 1.0)
    )
    return dot_figure(
        chart, "Task success, greedy, on held-out instructions; whiskers are 95% intervals."
    )


def _kinds(stage: StageFiles) -> Markup | None:
    after, before = stage.by_kind("task_success"), stage.by_kind("base_task_success")
    few = stage.by_kind("base_few_shot_task_success")
    rows = []
    for kind, number in sorted(after.items(), key=lambda item: item[1].value):
        dots = [Dot(before[kind], "grey")] if kind in before else []
        dots += [Dot(few[kind], 0)] if kind in few else []
        rows.append(Row(kind, [*dots, Dot(number, 1)], None, interval_note(number)))
    chart = DotChart(
        rows, "task success", "Task success by kind of instruction", x_range=(0.0, 1.0)
    )
    names: list[tuple[str, int | str]] = [("base", "grey")] if before else []
    names += [("few-shot", 0)] if few else []
    key = colour_key(*names, ("SFT", 1))
    return dot_figure(chart, "Task success by kind of instruction, the hardest first.", key)


def _curves(stage: StageFiles) -> Markup | None:
    validation = stage.first_column("validation_nll", "validation_loss", "validation/nll")
    success = stage.first_column("validation_task_success", "task_success")
    lines = [*noisy("train", stage.first_column("nll", "loss"), "grey")]
    lines += [Series("held out", validation, 1)] if validation else []
    charts = [
        Chart(
            lines,
            "step",
            "nats per response token",
            "Loss of SFT over the steps",
            flags=flags(stage.rows),
        ),
        Chart(
            [Series("", success, 1)], "step", "task success", "Task success over the steps of SFT"
        ),
        Chart(
            [Series("", stage.column("learning_rate"), "grey")],
            "step",
            "learning rate",
            "Learning rate over the steps of SFT",
            y_zero=True,
        ),
    ]
    caption = "How it trained: the loss is on the response tokens alone."
    return panels(charts, marked(stage, caption))
