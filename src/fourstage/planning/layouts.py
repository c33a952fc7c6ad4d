"""Whether a model needs more than one device, before anything of it is made."""

from __future__ import annotations

from collections.abc import Iterable

from fourstage.model.config import ModelConfig
from fourstage.planning.memory import Step, step_memory
from fourstage.planning.steps import frozen_models, planned_share
from fourstage.planning.trained import narrowed
from fourstage.recipe import Recipe


def fits_one_device(
    recipe: Recipe,
    config: ModelConfig,
    memory_bytes: float | None,
    stages: Iterable[str],
    device: str,
) -> bool:
    """Whether a device holds what each stage keeps, with one document of the full context at work.

    Where the memory is not known (a CPU) it is taken to.
    """
    if memory_bytes is None:
        return True
    return all(
        _needs(recipe, config, stage, device) <= planned_share(recipe, stage) * memory_bytes
        for stage in stages
    )


def _needs(recipe: Recipe, config: ModelConfig, stage: str, device: str) -> float:
    section, has_critic = recipe.stage(stage), stage == "rl" and recipe.rl.needs_critic
    step = Step(
        device=device,
        kernels=device == "cpu" and recipe.compute.kernels == "auto",
        recompute="off" if recipe.compute.recompute == "off" else "block",
        optimiser=section.optimiser or "adamw",
        models=2 if has_critic else 1,
        frozen_models=frozen_models(recipe, stage, device),
        average=section.ema > 0,
    )
    return step_memory(config, config.context, narrowed(step, config, section)).total
