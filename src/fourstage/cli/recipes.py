"""`fourstage recipes`: the shipped recipes, or the text of one to edit."""

from __future__ import annotations

import sys
import textwrap
from typing import Annotated

import typer

_WIDTH, _INDENT = 100, 14


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this one, to edit")
    ] = None,
) -> None:
    """List the shipped recipes with their main numbers, or print one: recipes NAME > mine.yaml"""
    from fourstage.recipe import shipped, shipped_text

    if name is not None:
        sys.stdout.write(shipped_text(name))
        return
    print("\n".join(_entry(each) for each in shipped()))
    print(
        "\nfourstage recipes NAME > mine.yaml   prints one to edit; fourstage plan NAME tells more"
    )


def _entry(name: str) -> str:
    """Its name, the first line of its comment, its main numbers."""
    from fourstage.recipe import shipped_text

    first = shipped_text(name).splitlines()[0].removeprefix("#").strip()
    lines = [
        *textwrap.wrap(first, _WIDTH - _INDENT),
        *textwrap.wrap(_numbers(name), _WIDTH - _INDENT),
    ]
    labels = [name, *[""] * (len(lines) - 1)]
    return "\n".join(f"{label:<{_INDENT}}{line}" for label, line in zip(labels, lines, strict=True))


def _numbers(name: str) -> str:
    from fourstage.planning import model_config, resolve
    from fourstage.recipe import load
    from fourstage.reporting.numbers import compact, parameters

    recipe, _ = resolve(load(name))
    config, rl = model_config(recipe), recipe.rl
    pairs = (recipe.reward.steps or 0) * (recipe.reward.pairs_per_step or 0)
    compared = f"{compact(pairs)} comparisons, " if rl.needs_reward_model else ""
    return (
        f"{parameters(config)}, context {config.context:,}; "
        f"{compact(recipe.pretrain.tokens)} tokens of text, {compact(recipe.sft.tokens)} of "
        f"demonstrations, {compared}{compact(rl.episodes)} episodes of {rl.algorithm.upper()}"
    )
