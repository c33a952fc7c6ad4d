"""RL: what the policy is paid for, what is true, and how far it has moved."""

from __future__ import annotations

from typing import Any

from fourstage.reporting.charts import Chart, Point, Reference, Series
from fourstage.reporting.dots import Dot, DotChart, Row, interval_note
from fourstage.reporting.events import flags
from fourstage.reporting.figures import colour_key, dot_figure, noisy, panels, wide_figure
from fourstage.reporting.html import Markup, join, tag
from fourstage.reporting.numbers import figures, measured, share
from fourstage.reporting.overoptimisation import study_of
from fourstage.reporting.runfiles import RunFiles, StageFiles
from fourstage.reporting.sections.stability import marked, stability
from fourstage.reporting.sections.trust import trust

PROXY = ("reward", "proxy_reward", "reward_mean", "score")
GOLD = ("gold", "gold_reward")
KL = ("kl", "kl_response", "sequence_kl")
GOLD_COLOUR, PROXY_COLOUR, KL_COLOUR = 5, 3, 4


def section(run: RunFiles) -> Markup | None:
    stage = run["rl"]
    if not stage.begun:
        return None
    return join(
        _words(run, stage),
        _gold(stage),
        _steps(stage),
        overoptimisation(stage),
        study_of(run.study, _parents(run)),
        trust(stage),
        _kinds(stage),
        _diversity(run),
        _health(stage),
        stability(stage),
    )


def _parents(run: RunFiles) -> dict[str, Any]:
    """What the stage was made from, by content; nothing where run.json does not say."""
    inputs = run.record("rl").get("inputs")
    found = inputs.get("parents") if isinstance(inputs, dict) else None
    return found if isinstance(found, dict) else {}


def _words(run: RunFiles, stage: StageFiles) -> Markup | None:
    before, after = stage.number("gold_reward_sft"), stage.number("gold_reward")
    best, kl = stage.number("gold_reward_ceiling"), stage.number("kl")
    parts: list[Any] = []
    if after and before:
        parts += [
            "The gold reward, which nothing in training sees, goes from ",
            measured(before),
            " to ",
        ]
        parts += [measured(after)]
        if best and best.value != before.value:
            way = (after.value - before.value) / (best.value - before.value)
            parts += [", ", share(way), " of the way to the best that exists, ", measured(best)]
        parts += [". "]
    if kl:
        parts += ["The policy ends at ", measured(kl, 2), " nats a response from the SFT model. "]
    right, were = stage.number("accuracy"), stage.number("accuracy_sft")
    if right and were:
        parts += ["Right greedy answers: ", measured(right), " after ", measured(were), ". "]
    success, sft = stage.number("task_success"), run["sft"].number("task_success")
    if success and sft:
        parts += [
            "Greedy task success is ",
            measured(success),
            " after ",
            figures(sft.value, 3),
            " for SFT.",
        ]
    return tag("p", parts) if parts else None


def _gold(stage: StageFiles) -> Markup | None:
    best = stage.number("gold_reward_ceiling")
    rows = [
        Row(label, [Dot(number, colour)], best.value if best else None, interval_note(number))
        for name, label, colour in (
            ("gold_reward_sft", "SFT model", 1),
            ("gold_reward", "RL model", GOLD_COLOUR),
        )
        if (number := stage.number(name))
    ]
    chart = DotChart(
        rows,
        "gold reward",
        "Gold reward of the SFT and the RL model against the best",
        x_range=_unit(rows),
    )
    key = colour_key(bound="best possible") if best else None
    return dot_figure(
        chart, "Gold reward at temperature 1 on held-out prompts, with 95% intervals.", key
    )


def _unit(rows: list[Row]) -> tuple[float, float]:
    """From a round tenth below the lowest whisker to 1."""
    lows = [row.dots[0].number.low or row.dots[0].number.value for row in rows]
    return (min(0.9, max(0.0, int(min(lows, default=0) * 10) / 10)), 1.0)


def _steps(stage: StageFiles) -> Markup | None:
    best, before = stage.number("gold_reward_ceiling"), stage.number("gold_reward_sft")
    marks = [Reference("best", best.value)] if best else []
    marks += [Reference("SFT", before.value)] if before else []
    gold, proxy, kl = (stage.first_column(*names) for names in (GOLD, PROXY, KL))
    charts = [
        Chart(
            noisy("", proxy, PROXY_COLOUR),
            "step",
            "reward",
            "Proxy reward over the steps of RL",
        ),
        Chart(
            noisy("gold", gold, GOLD_COLOUR),
            "step",
            "gold reward",
            "Gold reward over the steps of RL",
            marks,
        ),
        Chart(
            noisy("", kl, KL_COLOUR),
            "step",
            "nats per response",
            "KL to the SFT model over the steps of RL",
            y_zero=True,
        ),
    ]
    return panels(
        charts,
        "What the policy is paid for (left), what it is truly worth (never seen in training), "
        "and how far it has moved from the SFT model (KL).",
        small=True,
    )


def over_kl(stage: StageFiles, names: tuple[str, ...]) -> list[Point]:
    """The column over KL, in order of KL, averaged into 40 bins at most."""
    kl = next((name for name in KL if stage.column(name)), None)
    points = sorted(stage.first_column(*names, against=kl)) if kl else []
    if len(points) <= 40:
        return points
    low, high = points[0][0], points[-1][0]
    bins: dict[int, list[Point]] = {}
    for point in points:
        bins.setdefault(min(39, int(40 * (point[0] - low) / ((high - low) or 1))), []).append(point)
    return [
        (sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part))
        for _, part in sorted(bins.items())
    ]


def overoptimisation(stage: StageFiles) -> Markup | None:
    """Gold and proxy over KL in two panels: the picture of Gao et al. (2022)."""
    gold, proxy = over_kl(stage, GOLD), over_kl(stage, PROXY)
    x_title = "KL to the SFT model (nats per response)"
    if not gold:
        chart = Chart(
            [Series("proxy", proxy, PROXY_COLOUR, "dots")],
            x_title,
            "reward",
            "Proxy reward over KL",
        )
        return wide_figure(chart, "The reward over the distance from the SFT model.", 280)
    best = stage.number("gold_reward_ceiling")
    top = max(gold, key=lambda point: point[1])
    charts = [
        Chart(
            [Series("gold", gold, GOLD_COLOUR, "dots")],
            x_title,
            "gold reward",
            "Gold reward over KL to the SFT model",
            [Reference("best", best.value)] if best else [],
        ),
        Chart(
            [Series("proxy", proxy, PROXY_COLOUR, "dots")],
            x_title,
            "reward",
            "Proxy reward over KL to the SFT model",
        ),
    ]
    words = (
        "Over-optimisation: gold and proxy reward over KL. While both rise the reward leads well; "
        "where the proxy rises and gold falls the policy exploits its errors. "
        f"Gold is highest at {figures(top[0], 2)} nats ({figures(top[1], 3)})."
    )
    return panels(charts, words)


def _kinds(stage: StageFiles) -> Markup | None:
    before, after = stage.by_kind("gold_reward_sft"), stage.by_kind("gold_reward")
    best = stage.by_kind("gold_reward_ceiling")
    rows = []
    for kind, number in sorted(after.items(), key=lambda item: item[1].value):
        dots = [Dot(before[kind], 1)] if kind in before else []
        bound = best[kind].value if kind in best else None
        rows.append(Row(kind, [*dots, Dot(number, GOLD_COLOUR)], bound, interval_note(number)))
    chart = DotChart(rows, "gold reward", "Gold reward by kind of instruction")
    key = colour_key(("SFT", 1), ("RL", GOLD_COLOUR), bound="best possible" if best else "")
    return dot_figure(chart, "Gold reward by kind of instruction, before and after RL.", key)


DIVERSITY = (
    ("distinct_1", "different words"),
    ("distinct_2", "different pairs"),
    ("distinct_3", "different triples"),
    ("self_overlap", "shared pairs"),
)
MODELS = (("pretrain", "base", "grey"), ("sft", "sft", 1), ("rl", "rl", 3))


def diversity_rows(run: RunFiles) -> list[Row]:
    """A row a measure, with a dot a model, where at least two models were measured.

    A number is looked for as `distinct_2_base` in any stage, else as `distinct_2` in its own.
    """
    rows = []
    for measure, label in DIVERSITY:
        dots = []
        for stage, model, colour in MODELS:
            places = [run[place].number(f"{measure}_{model}") for place, *_ in reversed(MODELS)]
            number = next(filter(None, [*places, run[stage].number(measure)]), None)
            if number:
                dots.append(Dot(number, colour))
        if len(dots) > 1:
            rows.append(Row(label, dots, None, interval_note(dots[-1].number)))
    return rows


def _diversity(run: RunFiles) -> Markup | None:
    chart = DotChart(
        diversity_rows(run),
        "share of n-grams",
        "Diversity of samples of the base, SFT and RL models",
        zero=True,
    )
    return dot_figure(
        chart,
        "Diversity of several responses to one prompt at temperature 1: the share of different "
        "words, pairs and triples, and of pairs that another response has too. Alignment narrows "
        "a model. The number at the right is the RL model’s.",
        colour_key(("base", "grey"), ("SFT", 1), ("RL", 3)),
    )


HEALTH = (
    ("loss", "loss, all terms"),
    ("length", "tokens per response"),
    ("entropy", "entropy (nats per token)"),
    ("clip_fraction", "clipped share of ratios"),
    ("approx_kl_k3", "KL of an update (nats per token)"),
    ("value_loss", "value loss"),
    ("explained_variance", "variance explained by the critic"),
    ("dead_groups", "share of groups that teach nothing"),
    ("distinct_2", "different pairs of tokens"),
    ("self_overlap", "pairs that another response has"),
    ("kl_coefficient", "KL coefficient"),
    ("finished", "share of responses that end"),
    ("learning_rate", "learning rate"),
)


def _health(stage: StageFiles) -> Markup | None:
    charts = [
        Chart(
            noisy("", stage.column(name), "grey"),
            "step",
            title,
            f"{title} over the steps of RL",
            flags=flags(stage.rows) if name == "loss" else (),
        )
        for name, title in HEALTH
    ]
    return panels(charts, marked(stage, "How it trained."), small=True)
