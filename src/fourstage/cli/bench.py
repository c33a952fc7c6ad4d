"""`fourstage bench`: how fast each stage trains here, and where its time and its memory go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourstage.cli.running import Overrides
from fourstage.errors import InputError, nearest

if TYPE_CHECKING:
    from fourstage.planning import DataFacts
    from fourstage.profiling.bench import Bench
    from fourstage.recipe import Recipe

_USUAL = "quickstart"
_SECONDS = 0.5


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="A recipe file or the name of a shipped one")
    ] = _USUAL,
    overrides: Overrides = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="One of the four, or several; else all")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Train each stage for a few seconds on made-up batches of the recipe's sizes.

    Tells tokens a second, the share of this machine's matrix product that the model's operations
    reach, where a step's time goes, and what it holds in memory beside what was planned. Needs no
    data and writes nothing.
    """
    from fourstage.recipe import STAGES, load

    for name in stage or []:
        if name not in STAGES:
            near, one = nearest(name, STAGES), ", ".join(STAGES)
            raise InputError(f"--stage {name}: no such stage{near}; write one of {one}")
    loaded = load(recipe, overrides or [])
    from fourstage.devices import resolve_device
    from fourstage.planning import model_config, resolve
    from fourstage.profiling.bench import bench

    device = resolve_device(loaded.device)
    facts = _facts(loaded, device.type)
    resolved, _ = resolve(loaded, facts)
    config = model_config(resolved, facts.vocab_size)
    found = bench(resolved, config, stage or STAGES, device, _SECONDS)
    if as_json:
        print(json.dumps({"recipe": loaded.name, **found.to_json()}, indent=2))
    else:
        _tell(found, loaded.name, found.config != config)


def _facts(recipe: Recipe, device: str) -> DataFacts:
    """What the rules may know; of raw data that are not here, nothing."""
    from dataclasses import replace

    from fourstage.data.prepare import text_bytes
    from fourstage.planning import DataFacts, parent_shape

    facts = DataFacts(model=parent_shape(recipe), device=device)
    try:
        return replace(facts, text_bytes=text_bytes(recipe))
    except InputError:
        return facts  # the rules then go by the size of the model alone


def _tell(found: Bench, name: str, was_cut: bool) -> None:
    from fourstage.reporting.numbers import compact, power_of_ten

    config = found.config
    print(
        f"{name}: {compact(config.parameters())} parameters, {config.layers} layers of width "
        f"{config.width}, context {config.context:,}"
    )
    if was_cut:
        print("The recipe's model is larger: what is measured is cut in depth or width.")
    print(f"{found.device}: {power_of_ten(found.ceiling)} FLOP/s of matrix products")
    _speeds(found)
    _times(found)
    _memory(found)


def _speeds(found: Bench) -> None:
    header = ["stage", "tokens/s", "GFLOP/s", "of ceiling"]
    header += ["MFU"] if found.data_sheet else []
    header += ["tokens a step", "step, ms", "checkpoint, ms"]
    rows = []
    for each in found.stages:
        flops = each.flops_per_second
        row: list[Any] = [each.stage, round(each.tokens_per_second), _three(flops / 1e9)]
        row += [f"{flops / found.ceiling:.1%}"]
        row += [f"{flops / found.data_sheet:.1%}"] if found.data_sheet else []
        row += [round(each.tokens_per_step), _three(1000 * each.step_seconds)]
        rows.append([*row, _three(1000 * each.checkpoint_seconds)])
    _table("speed", header, rows)
    if any(each.stage == "rl" for each in found.stages):
        print("In rl, tokens and FLOPs are those of the updates; a step also draws and scores.")


def _times(found: Bench) -> None:
    """A row a part; of a checkpoint each step bears its share."""
    from fourstage.profiling.instruments import PARTS

    def row(name: str, seconds: Sequence[float]) -> list[str]:
        cells = [name]
        for each, taken in zip(found.stages, seconds, strict=True):
            share = f"{taken / each.profiled_seconds:.1%}"
            cells += [_three(1000 * taken), share] if taken else ["", ""]
        return cells

    parts = {part: [each.parts[part] for each in found.stages] for part in PARTS}
    rows = [row(part.replace("_", " "), taken) for part, taken in parts.items() if any(taken)]
    rows.append(row("all", [each.profiled_seconds for each in found.stages]))
    header = ["part", *(word for each in found.stages for word in (f"{each.stage}, ms", ""))]
    _table("where the time of a step goes", header, rows)


def _memory(found: Bench) -> None:
    header = ["stage", "weights", "gradients", "optimiser", "read only", "activations", "peak"]
    rows = []
    for each in found.stages:
        held = each.held
        counted = (held.weights, held.gradients, held.optimiser, held.frozen, held.activations)
        in_mb = (*counted, held.peak, each.predicted.total)
        rows.append([each.stage, *(_three(size / 1e6) for size in in_mb)])
    _table("what a step holds, MB", [*header, "planned"], rows)


def _three(value: float) -> str:
    """Three significant digits, without an exponent for large numbers."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Numbers to the right of their columns, as wide as they are."""
    from rich.console import Console

    from fourstage.reporting.tables import make_table

    table = make_table(header, rows, title)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    width = max(Console().width, 100)
    Console(width=width, highlight=False).print(table)
