"""What the commands that work on a run share: their arguments, and how they start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file or the name of a shipped one")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE ...]", help="Fields of the recipe by their dotted path"),
]
Out = Annotated[Path | None, typer.Option(help="The run's folder; else runs/<name of the recipe>")]
Redo = Annotated[
    bool, typer.Option("--redo", help="Take raw data that changed, and repeat what they made")
]


def run_folder(out: Path | None, name: str) -> Path:
    return out if out is not None else Path("runs") / name


def start(
    recipe: str, overrides: list[str] | None, out: Path | None, redo: bool, only: str | None = None
) -> None:
    """Loads the recipe, then runs all of it or one stage.

    Raises:
        InputError: the recipe, its data or the run folder are not what they should be.
    """
    from fourstage.recipe import load

    loaded = load(recipe, overrides or [])
    loaded.require_data(None if only is None else [only])
    from fourstage.pipeline import run

    run(loaded, run_folder(out, loaded.name), redo=redo, only=only)


def command_for(only: str | None, help: str) -> Callable[..., None]:
    """The command of one stage, or with None of them all."""

    def command(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        out: Out = None,
        redo: Redo = False,
    ) -> None:
        start(recipe, overrides, out, redo, only)

    command.__doc__ = help
    return command
