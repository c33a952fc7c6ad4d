"""A run: the stages of a recipe in order, what is finished kept, what was cut off continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourstage.recipe import Recipe


def run(recipe: Recipe, out: Path, **options: Any) -> None:
    """Runs a recipe into the folder `out`; see `fourstage.pipeline.opening.run`."""
    from fourstage.pipeline.opening import run as run_stages

    run_stages(recipe, out, **options)


def prepare(recipe: Recipe, out: Path, **options: Any) -> None:
    """Prepares the data of a recipe in the folder `out`; see `pipeline.opening.prepare`."""
    from fourstage.pipeline.opening import prepare as prepare_data

    prepare_data(recipe, out, **options)


__all__ = ["prepare", "run"]
