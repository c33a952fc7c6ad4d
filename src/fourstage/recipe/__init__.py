"""The typed recipe: what a run is a function of."""

from fourstage.recipe.loading import load, recipe_from, shipped, shipped_text
from fourstage.recipe.schema import (
    PARTS,
    RL,
    STAGES,
    Compute,
    Model,
    Parallel,
    Recipe,
    Reward,
    Stage,
)

__all__ = [
    "PARTS",
    "RL",
    "STAGES",
    "Compute",
    "Model",
    "Parallel",
    "Recipe",
    "Reward",
    "Stage",
    "load",
    "recipe_from",
    "shipped",
    "shipped_text",
]
