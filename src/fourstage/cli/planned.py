"""How `fourstage plan` writes a plan: text of at most 100 columns, and a recipe file."""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from fourstage.planning import Derived
from fourstage.planning.budget import Fitted, written
from fourstage.planning.plan import Plan
from fourstage.planning.rules import shown
from fourstage.planning.steps import Laid
from fourstage.reporting.numbers import (
    SPACE,
    compact,
    duration,
    figures,
    parameters,
    power_of_ten,
    storage,
)

_WIDTH = 100
# Room for the two characters that make a line a comment.
_MARGIN = 2


def shape(plan: Plan) -> str:
    """The model in a line."""
    config = plan.config
    return (
        f"{parameters(config)}: {config.layers} layers of width "
        f"{config.width}, {config.heads} heads, vocabulary {config.vocab_size:,}, context "
        f"{config.context:,}"
    )


def told(plan: Plan, title: str, notes: list[str], price: float | None) -> str:
    """What on what, the table of the stages, what to know beside it.

    Args:
        price: of one device for an hour; None leaves the cost out.
    """
    above = [title, f"on {_machine(plan)}"]
    below = [*_beside(plan), *notes]
    tables = [_stages(plan, price), _memory(plan)]
    return "\n".join([*map(_wrapped, above), *tables, *map(_wrapped, below)])


def rules(derived: Iterable[Derived]) -> str:
    """Every derived value with its rule, as a table; empty where none was derived."""
    rows = [[each.key, shown(each.value), each.rule] for each in derived]
    return _table(["derived", "value", "rule"], rows) if rows else ""


def _machine(plan: Plan) -> str:
    speed = plan.speed
    return (
        f"{speed.device}, {speed.source}: {power_of_ten(speed.training)} FLOP/s of training, "
        f"{compact(speed.generation)} tokens/s drawn"
    )


def _stages(plan: Plan, price: float | None) -> str:
    header = ["stage", "params", "tokens", "steps x batch", "FLOPs", "memory", "time"]
    rented = plan.speed.source == "data sheet"
    header += ["GPU-h"] if rented else []
    header += ["cost"] if price is not None else []

    def row(name: str, what: Any, batch: str) -> list[str]:
        hours = what.seconds * plan.speed.devices / 3600
        cells = [name, compact(plan.config.parameters()), compact(what.tokens), batch]
        cells += [power_of_ten(what.flops), storage(what.memory_bytes), long_time(what.seconds)]
        cells += [_amount(hours)] if rented else []
        cells += [_amount(price * hours)] if price is not None else []
        # Nine columns leave no room between a number and its unit.
        return [cell.replace(SPACE, "") for cell in cells]

    rows = [
        row(name, stage, f"{compact(stage.steps)} x {compact(stage.batch)} {stage.unit}")
        for name, stage in plan.stages.items()
    ]
    return _table(header, [*rows, row("all", plan, "")])


def _memory(plan: Plan) -> str:
    """What a device holds in the stage that takes most, by layout and by what is computed again."""
    largest = max(plan.stages.values(), key=lambda stage: stage.memory_bytes).stage
    header = [f"{largest} on", "blocks", "weights", "gradients", "optimiser", "activations"]
    header += ["logits", "frozen", "all"]

    def row(laid: Laid) -> list[str]:
        held = laid.memory
        parts = (held.weights, held.gradients, held.optimiser, held.activations, held.logits)
        sizes = [storage(size).replace(SPACE, "") for size in (*parts, held.others, held.total)]
        ways = {"off": "kept", "block": "again"}
        return [laid.layout, ways[laid.recompute], *sizes]

    return _table(header, [row(laid) for laid in plan.layouts])


def _amount(value: float) -> str:
    if value >= 1e5:
        return compact(value)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _beside(plan: Plan) -> list[str]:
    """What the table does not say by itself."""
    lines = [
        f"FLOPs are those of the updates; drawing, scoring and measuring add "
        f"{power_of_ten(plan.other_flops)}. The time is that of all of it."
    ]
    if plan.speed.source == "data sheet":
        lines.append(
            "By data sheets: training at a share of the peak (--mfu); drawing and scoring, which "
            "each process does for itself, at one device's speed and estimated conservatively. "
            "Data are prepared before, with fourstage prepare."
        )
    if plan.speed.is_shared:
        lines.append(
            "Something else ran on this machine while it was measured: alone, a run is faster."
        )
    if plan.facts.devices > 1:
        lines.append(f"One device does not hold it all: {plan.facts.devices} share the weights.")
    if not plan.fits:
        lines.append(
            f"It does not fit: a device has {storage(plan.facts.memory_bytes)}, of which a plan "
            "may fill 80%. Take more or larger ones, a smaller rl.rollout_batch or a smaller model."
        )
    return lines


def long_time(seconds: float) -> str:
    """`9 min 54 s`, and years where a plan is beyond all patience."""
    years = seconds / (365.25 * 86400)
    return f"{figures(years, 0)}{SPACE}years" if years >= 3 else duration(seconds)


def _width() -> int:
    return min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH) - _MARGIN


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _width(), break_on_hyphens=False)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    from rich.console import Console

    from fourstage.reporting.tables import print_table

    page = io.StringIO()
    print_table(header, rows, console=Console(file=page, width=_width(), highlight=False))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def as_file(fitted: Fitted, text: str, seconds: float, name: str) -> str:
    """The recipe as YAML, the plan above it as comments."""
    import yaml

    opening = f"Planned for {long_time(seconds)}:\n  {how_to_run(fitted, name)}\n"
    comments = [f"# {line}".rstrip() for line in f"{opening}\n{text}".splitlines()]
    recipe = yaml.safe_dump(written(fitted.recipe), sort_keys=False, allow_unicode=True)
    return "\n".join([*comments, recipe])


def how_to_run(fitted: Fitted, name: str) -> str:
    """The command that runs the recipe in the file `name`."""
    devices = fitted.plan.speed.devices
    start = f"torchrun --nproc-per-node {devices} -m " if devices > 1 else ""
    text = "" if fitted.recipe.data.pretrain else " data.pretrain=FOLDER"
    return f"{start}fourstage run {name}{text}"
