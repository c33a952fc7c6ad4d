"""`fourstage run`: all stages of a recipe."""

from __future__ import annotations

from fourstage.cli.running import Out, Overrides, RecipeArgument, Redo, start


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    redo: Redo = False,
) -> None:
    """Run all stages of a recipe; run again to go on where it stopped."""
    start(recipe, overrides, out, redo)
