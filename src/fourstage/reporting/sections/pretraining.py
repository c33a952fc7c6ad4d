"""Pretraining: the loss against the entropy floor, and where the remaining excess sits."""

from __future__ import annotations

import math

from fourstage.reporting.charts import Chart, Point, Reference, Series
from fourstage.reporting.dots import Dot, DotChart, Row, interval_note
from fourstage.reporting.events import flags
from fourstage.reporting.figures import colour_key, dot_figure, noisy, panels, wide_figure
from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import Number, figures, is_number, measured, share
from fourstage.reporting.runfiles import RunFiles, StageFiles
from fourstage.reporting.sections.stability import marked, stability

VALIDATION = ("validation_bits_per_byte", "validation/bits_per_byte", "bits_per_byte")
VALIDATION_NLL = ("validation_nll", "validation_loss", "validation/nll", "validation/loss")
TRAIN = ("nll", "loss")


def section(run: RunFiles) -> Markup | None:
    stage = run["pretrain"]
    if not stage.begun:
        return None
    return join(
        _words(stage),
        _curves(stage),
        _speeds(stage),
        stability(stage),
        _kinds(stage),
        _lookback(stage),
    )


def entropy(stage: StageFiles) -> float | None:
    """The floor in bits per byte: of the results, else of the rows while it trains."""
    found = stage.number("entropy_bits_per_byte")
    if found:
        return found.value
    rows = stage.first_column("entropy_bits_per_byte", "floor_bits_per_byte")
    return rows[-1][1] if rows else None


def bytes_per_token(stage: StageFiles) -> float | None:
    """Mean UTF-8 bytes a token, with which a loss in nats becomes bits per byte."""
    given = stage.metrics.get("bytes_per_token")
    if given:
        return given
    for row in reversed(stage.rows):
        bits = next((row[name] for name in VALIDATION if is_number(row.get(name))), None)
        nats = next((row[name] for name in VALIDATION_NLL if is_number(row.get(name))), None)
        if bits and nats:
            return nats / math.log(2) / bits
    return None


def _words(stage: StageFiles) -> Markup | None:
    bits, floor = stage.number("validation_bits_per_byte"), stage.number("entropy_bits_per_byte")
    if not bits:
        return None
    parts = ["The base model needs ", measured(bits), " bits per byte of held-out text"]
    if floor:
        excess = share(bits.value / floor.value - 1)
        parts += [", ", excess, " above the entropy of the same documents, ", measured(floor)]
        parts += [", which no model can go below"]
    overlap = stage.number("validation_seen_in_training", "validation_in_training", "train_overlap")
    if overlap:
        parts += [". Of those documents ", share(overlap.value), " also occur in training"]
    return tag("p", parts, ".")


def _curves(stage: StageFiles) -> Markup | None:
    against = "tokens" if stage.column("loss", "tokens") else "step"
    train = stage.first_column(*TRAIN, against=against)
    validation = stage.first_column(*VALIDATION, against=against)
    floor, scale = entropy(stage), bytes_per_token(stage)
    x_title = "tokens trained on (log scale)" if against == "tokens" else "step (log scale)"
    floors = [Reference("entropy", floor)] if floor else []
    if scale and validation:
        train = [(x, loss / math.log(2) / scale) for x, loss in train]
        chart = Chart(
            [*noisy("training", train, "grey"), held_out(validation)],
            x_title,
            "bits per byte",
            "Training and validation loss in bits per byte over tokens, with the entropy floor",
            floors,
            x_log=True,
            flags=flags(stage.rows, against),
        )
        caption = (
            "Loss in bits per byte. Pale: each logged row; grey: its running mean; dots: held-out "
            "text; dashed: the entropy of that text, which no model can go below, where known."
        )
        return wide_figure(chart, marked(stage, caption))
    nats = stage.first_column(*VALIDATION_NLL, against=against)
    own = [held_out(nats)] if nats else []
    charts = [
        Chart(
            [*noisy("training", train, "grey"), *own],
            x_title,
            "nats per token",
            "Training loss in nats per token",
            x_log=True,
            flags=flags(stage.rows, against),
        ),
        Chart(
            [held_out(validation)],
            x_title,
            "bits per byte",
            "Validation bits per byte with the entropy floor",
            floors,
            x_log=True,
        ),
    ]
    caption = "Loss of the training batches, and bits per byte on held-out text."
    return panels(charts, marked(stage, caption))


def held_out(points: list[Point]) -> Series:
    """The validation line; its few points are shown as dots."""
    return Series("validation", points, 0, "dots" if len(points) <= 60 else "line")


def _speeds(stage: StageFiles) -> Markup | None:
    charts = [
        Chart(
            noisy("", stage.column(name), "grey"),
            "step",
            title,
            f"{title} over the steps",
            y_zero=True,
        )
        for name, title in (
            ("learning_rate", "learning rate"),
            ("gradient_norm", "gradient norm"),
            ("tokens_per_second", "tokens per second"),
        )
    ]
    return panels(charts, "How it trained.", small=True)


def _kinds(stage: StageFiles) -> Markup | None:
    bits = stage.by_kind("validation_bits_per_byte") or stage.by_kind("bits_per_byte")
    floors = stage.by_kind("entropy_bits_per_byte") or stage.by_kind("entropy")
    rows = []
    for kind, number in sorted(
        bits.items(), key=lambda item: -_excess(item[1], floors.get(item[0]))
    ):
        floor = floors.get(kind)
        note = interval_note(number)
        if floor:
            note = f"{figures(number.value, 3)}  +{share(_excess(number, floor))}"
        rows.append(Row(kind, [Dot(number, 0)], floor.value if floor else None, note))
    chart = DotChart(
        rows, "bits per byte", "Bits per byte by kind of document, with the entropy of each"
    )
    key = colour_key(("model", 0), bound="entropy of the kind") if floors else None
    caption = (
        "Bits per byte by kind of document, the furthest above its own entropy first; "
        "whiskers are 95% intervals."
    )
    return dot_figure(chart, caption, key)


def _excess(number: Number, floor: Number | None) -> float:
    return number.value / floor.value - 1 if floor and floor.value else 0.0


def _lookback(stage: StageFiles) -> Markup | None:
    names = ("determined_accuracy", "lookback_accuracy", "greedy_accuracy")
    kinds = next((found for name in names if (found := stage.by_kind(name))), {})
    rows = [
        Row(kind, [Dot(number, 0)], 1.0, interval_note(number))
        for kind, number in sorted(kinds.items(), key=lambda item: item[1].value)
    ]
    low = min((row.dots[0].number.low or row.dots[0].number.value for row in rows), default=0)
    chart = DotChart(
        rows,
        "greedy accuracy",
        "Greedy accuracy on what the text above determines, by kind of document",
        x_range=(min(0.8, low - 0.02), 1.0),
    )
    return dot_figure(
        chart, "Greedy accuracy on the words that the text above determines, by kind of document."
    )
