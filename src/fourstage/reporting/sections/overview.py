"""The head of the page: what was trained, the four-stage table, each stage against its bound."""

from __future__ import annotations

from typing import Any

from fourstage.reporting.html import Markup, join, table, tag
from fourstage.reporting.numbers import (
    NONE,
    Number,
    compact,
    duration,
    figures,
    is_number,
    measured,
    power_of_ten,
    share,
)
from fourstage.reporting.runfiles import STAGES, RunFiles

# State of GPT (Karpathy, 2023): what each stage has at the published sizes
PUBLISHED = {
    "data": (
        "raw text, trillions of words",
        "10–100 K prompts with ideal responses",
        "100 K–1 M comparisons",
        "10–100 K prompts",
    ),
    "resources": (
        "1000s of GPUs, months; 99% of the compute",
        "1–100 GPUs, days",
        "1–100 GPUs, days",
        "1–100 GPUs, days",
    ),
}
METHODS = (
    "language modelling: predict the next token",
    "language modelling on the responses",
    "binary classification: which response is better",
    "reinforcement learning: generate what is scored high",
)
PRODUCTS = (
    "base model: completes documents",
    "SFT model: answers",
    "reward model: scores, not for chat",
    "RL model: answers better",
)
PARTS = ("pretrain", "sft", "preferences", "prompts")
COUNTS = (
    ("world.documents", "documents"),
    ("data.demonstrations", "demonstrations"),
    ("data.comparisons", "comparisons"),
    ("data.rl_prompts", "prompts"),
)


def parameters(run: RunFiles) -> float | None:
    """The number of parameters, from wherever the run says it."""
    for place in (run.plan, run.lineage, *(run[stage].results for stage in STAGES)):
        for key in ("parameters", "params"):
            value = place.get(key)
            if is_number(value):
                return float(value)
    value = run["pretrain"].metrics.get("parameters") or run.setting("model.params")
    return float(value) if is_number(value) else None


def headline(run: RunFiles) -> Markup:
    """The title, one sentence that says what this is, and whether it is whole."""
    done = [stage for stage in STAGES if run[stage].finished]
    count, seconds = parameters(run), sum(run[stage].total("seconds") or 0 for stage in STAGES)
    size = f"A model of {compact(count)} parameters" if count else "A model"
    through = {0: "at the start of", 4: "trained through"}.get(len(done), "on its way through")
    device = run.lineage.get("device") or run.record("pretrain").get("device")
    where = f" on {_device(device)}" if device else ""
    took = f" in {duration(seconds)}" if seconds else ""
    seed = run.setting("seed")
    tail = f", seed {seed}" if seed is not None else ""
    return join(
        tag("h1", run.name),
        tag("p", f"{size}, {through} the four stages{where}{took}{tail}.", class_="lead"),
        _unfinished(run),
        [tag("p", fault, class_="notice") for fault in run.faults],
    )


def _device(device: Any) -> str:
    if isinstance(device, dict):
        return str(device.get("name") or device.get("type") or "one device")
    return {"cpu": "a CPU", "cuda": "a GPU", "mps": "an Apple GPU"}.get(str(device), str(device))


def _unfinished(run: RunFiles) -> Markup | None:
    open_ = [
        f"{run[stage].title.lower()} is {run.status(stage)}"
        for stage in STAGES
        if not run[stage].finished and run.status(stage) != "not needed"
    ]
    if not open_:
        return None
    sentence = "; ".join(open_)
    return tag(
        "p",
        f"This run is not finished: {sentence}. What there is so far is shown; "
        "run it again to go on.",
        class_="notice",
    )


def four_stages(run: RunFiles) -> Markup:
    """The table of *State of GPT*, with this run's numbers above the published scale in grey."""
    stages = [run[stage] for stage in STAGES]
    flops = [stage.total("flops") or 0 for stage in stages]
    total = sum(flops)
    heads = [
        tag("span", f"{i + 1} {_short(s.title)}", class_=f"n{i}") for i, s in enumerate(stages)
    ]
    resources = []
    for stage, spent in zip(stages, flops, strict=True):
        lines = [duration(stage.total("seconds"))] if stage.total("seconds") else []
        if stage.total("tokens"):
            lines.append(f"{compact(stage.total('tokens'))} tokens")
        if spent:
            part = f", {share(spent / total)}" if all(flops) else ""
            lines.append(f"{power_of_ten(spent)} FLOP{part}")
        resources.append(lines)
    rows = [
        ["data", *(_cell([_data(run, i)], PUBLISHED["data"][i]) for i in range(4))],
        ["learns by", *METHODS],
        ["starts from", *(_parent(run, stage) for stage in STAGES)],
        ["product", *PRODUCTS],
        [
            "resources",
            *(_cell(lines, PUBLISHED["resources"][i]) for i, lines in enumerate(resources)),
        ],
        ["state", *(run.status(stage) for stage in STAGES)],
    ]
    caption = (
        "The four stages. This run’s numbers, with the scale of the published "
        "systems (State of GPT, 2023) in grey."
    )
    return table(["", *heads], rows, caption=caption, class_="four stack")


def _short(title: str) -> str:
    return {"Supervised fine-tuning": "SFT", "Reinforcement learning": "RL"}.get(title, title)


def _cell(lines: list[Any], published: str) -> Markup:
    body = [piece for line in lines for piece in (line, tag("br"))]
    return tag("span", body, tag("span", published, class_="soft"))


def _data(run: RunFiles, index: int) -> str:
    path, noun = COUNTS[index]
    count = run.setting(path)
    origin = origin_of(run, PARTS[index])
    counted = (
        f"{compact(count)} {noun}" if is_number(count) else ("raw text" if index == 0 else noun)
    )
    return f"{counted} {origin}".strip()


def origin_of(run: RunFiles, part: str) -> str:
    """Where the recipe takes a part of the data from, in words."""
    value, text = run.setting(f"data.{part}"), run.setting("data.pretrain")
    if value is None and part != "pretrain":
        if text is None:
            return ""
        return "of the world" if text == "world" else "made from the text"
    if value == "world":
        return "of the world"
    paths = value if isinstance(value, list) else [value] if value else []
    names = [str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths]
    return f"of {', '.join(names)}" if names else ""


def _parent(run: RunFiles, stage: str) -> str:
    given = run.setting(f"{stage}.from")
    if given:
        return str(given).rstrip("/").rsplit("/", 1)[-1]
    if stage == "rl" and run.setting("rl.preference") and not run.setting("rl.online"):
        return "the SFT model, by comparisons"
    return {
        "pretrain": "random weights",
        "sft": "the base model",
        "reward": "the SFT model",
        "rl": f"the SFT model, scored by {_judges(run)}",
    }[stage]


def _judges(run: RunFiles) -> str:
    """What gives the policy its numbers."""
    kinds = dict.fromkeys(run.reward_parts())
    named = ["the reward model" if kind == "model" else kind for kind in kinds]
    return ", ".join(named) or "the reward model"


def scoreboard(run: RunFiles) -> Markup | None:
    """Before, after and the best possible, one line a measure, each with its 95% interval."""
    rows = [row for row in _scores(run) if row is not None]
    if not rows:
        return None
    caption = (
        "Each stage, before and after, against the best possible, on held-out data. "
        "95% bootstrap intervals in brackets."
    )
    head = ["measure", "before", "after", "best possible", "so far"]
    return table(head, rows, caption=caption, class_="measures stack")


def _scores(run: RunFiles) -> list[list[Any] | None]:
    pre, sft, reward, rl = (run[stage] for stage in STAGES)
    bits, entropy = pre.number("validation_bits_per_byte"), pre.number("entropy_bits_per_byte")
    above = f"{share(bits.value / entropy.value - 1)} above" if bits and entropy else ""
    pair, ceiling = reward.number("pair_accuracy"), reward.number("pair_accuracy_ceiling")
    of_ceiling = f"{share(pair.value / ceiling.value)} of it" if pair and ceiling else ""
    chance = Number(0.5)
    gold, before, best = (
        rl.number("gold_reward"),
        rl.number("gold_reward_sft"),
        rl.number("gold_reward_ceiling"),
    )
    way = ""
    if gold and before and best and best.value != before.value:
        way = f"{share((gold.value - before.value) / (best.value - before.value))} of the way"
    few = sft.number("base_few_shot_task_success")
    few_note = (
        join(" ", tag("span", f"(few-shot {figures(few.value, 3)})", class_="interval"))
        if few
        else ""
    )
    return [
        _score("bits per byte", None, bits, entropy, above),
        _score(
            "SFT task success",
            sft.number("base_task_success"),
            sft.number("task_success"),
            None,
            "",
            few_note,
        ),
        _score("reward model, pair accuracy", chance, pair, ceiling, of_ceiling),
        _score(
            "reward model, right over wrong",
            chance,
            reward.number("right_wrong_accuracy"),
            None,
            "",
        ),
        _score("RL gold reward", before, gold, best, way),
        _score("RL right answers", rl.number("accuracy_sft"), rl.number("accuracy"), None, ""),
        _score("RL task success", sft.number("task_success"), rl.number("task_success"), None, ""),
    ]


def _score(
    name: str,
    before: Number | None,
    after: Number | None,
    best: Number | None,
    note: str,
    extra: Any = "",
) -> list[Any] | None:
    if after is None:
        return None
    return [
        name,
        tag("span", measured(before), extra),
        measured(after),
        measured(best),
        note or NONE,
    ]
