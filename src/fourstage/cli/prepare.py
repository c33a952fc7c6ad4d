"""`fourstage prepare`: the data and the tokenizer of a recipe, and nothing trained."""

from __future__ import annotations

from typing import Annotated

import typer

from fourstage.cli.running import Out, Overrides, RecipeArgument, Redo, run_folder
from fourstage.errors import InputError, nearest

_PARTS = ("tokenizer", "pretrain", "sft", "reward", "rl")


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    only: Annotated[str | None, typer.Option(help=f"One of {', '.join(_PARTS)}")] = None,
    redo: Redo = False,
) -> None:
    """Prepare the data and the tokenizer of a recipe; a run goes on from what it leaves."""
    if only is not None and only not in _PARTS:
        near = nearest(only, _PARTS)
        raise InputError(f"--only {only}: no such part{near}; write one of {', '.join(_PARTS)}")
    from fourstage.recipe import load

    loaded = load(recipe, overrides or [])
    if only != "tokenizer":
        loaded.require_data(None if only is None else [only])
    from fourstage.pipeline import prepare

    prepare(loaded, run_folder(out, loaded.name), only=only, redo=redo)
