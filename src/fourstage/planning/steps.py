"""What a stage's step is to the memory: its models, its optimiser, and how they are laid out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fourstage.model.config import ModelConfig
from fourstage.planning.facts import DataFacts
from fourstage.planning.judging import Readers
from fourstage.planning.memory import Memory, Recompute, Step, largest_micro_batch, step_memory
from fourstage.planning.trained import narrowed
from fourstage.recipe.schema import Recipe

# What a device is taken to have where nothing is known of it.
USUAL_MEMORY = 80e9
# A GPU's micro-batch below which computing blocks twice, a third more work, costs less than its
# half empty products.
_FEWEST_TOKENS = 8192
# No micro-batch on a GPU is larger: nothing gets faster.
_MOST_TOKENS = 2**17


def stage_step(config: ModelConfig, recipe: Recipe, stage: str, facts: DataFacts) -> Step:
    """The step of a stage, with blocks computed again only where the recipe says so."""
    section, asked, compute = recipe.stage(stage), recipe.parallel, recipe.compute
    has_critic = stage == "rl" and recipe.rl.needs_critic
    device = facts.device if recipe.device == "auto" else recipe.device
    step = Step(
        device=device,
        kernels=device == "cpu" and compute.kernels == "auto",
        workers=_workers(recipe, device),
        replicas=asked.replicate or 1,
        shards=asked.shard or (facts.devices if asked.replicate is None else 1),
        tensor=asked.tensor or 1,
        sequence=asked.sequence,
        optimiser=section.optimiser or "adamw",
        recompute="block" if compute.recompute == "block" else "off",
        models=2 if has_critic else 1,
        frozen_models=frozen_models(recipe, stage, device),
        scores=stage == "reward",
        average=section.ema > 0,
    )
    return narrowed(step, config, section)


def frozen_models(recipe: Recipe, stage: str, device: str = "cpu") -> int:
    """Models that a stage only reads.

    Of `rl` the reward model, with all that it is made of, one that watches, and the reference,
    which an adapter's policy is. Of `reward` the chat model and members trained before: while one
    is trained they wait in the memory of the CPU, but for a chat model whose likelihoods count.
    """
    if stage == "reward":
        return recipe.reward.ensemble if device == "cpu" else int(recipe.reward.likelihood)
    if stage != "rl":
        return 0
    rl = recipe.rl
    return (
        Readers.of(recipe).models
        + int(rl.watch_model is not None)
        + int(rl.needs_reference and rl.adapter is None)
        + int(bool(rl.behind) and rl.rollout_device is None)
    )


def planned_share(recipe: Recipe, stage: str) -> float:
    """Share of a device's memory that a stage is planned with: vLLM beside the trainer keeps its
    own."""
    engine = recipe.rl.engine
    is_beside = stage == "rl" and engine is not None and engine.kind == "vllm"
    return recipe.compute.memory - (engine.memory if is_beside else 0.0)


def _workers(recipe: Recipe, device: str) -> int:
    from fourstage.parallel.replicas import one_a_core

    return (recipe.compute.workers or one_a_core()) if device == "cpu" else 1


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch that fits a device, and whether blocks are computed again for it."""

    micro_batch_tokens: int
    recompute: Recompute


def largest_fit(config: ModelConfig, recipe: Recipe, stage: str, facts: DataFacts) -> Fit:
    """The micro-batch that fits the share of a GPU's memory that is planned with.

    Blocks are computed again where few tokens fit otherwise, unless the recipe says.
    """
    step = stage_step(config, recipe, stage, facts)
    budget = planned_share(recipe, stage) * (facts.memory_bytes or USUAL_MEMORY)
    kept = min(_MOST_TOKENS, largest_micro_batch(config, budget, step))
    enough = min(recipe.stage(stage).batch_tokens or _FEWEST_TOKENS, _FEWEST_TOKENS)
    if recipe.compute.recompute != "auto" or kept >= enough:
        return Fit(kept, step.recompute)
    again = largest_micro_batch(config, budget, replace(step, recompute="block"))
    return Fit(min(_MOST_TOKENS, again), "block")


@dataclass(frozen=True)
class Laid:
    """What one device holds at the peak of a step, laid out in one way."""

    layout: str
    recompute: Recompute
    memory: Memory


def layouts(config: ModelConfig, cells: float, step: Step, devices: int) -> list[Laid]:
    """The memory of a step on micro-batches of `cells`: on one device, sharded, products shared.

    Args:
        devices: how many there are to share a model.
    """
    alone = replace(step, replicas=1, shards=1, tensor=1, sequence=False)
    found = [("one device", alone)]
    if devices > 1:
        found.append((f"shard={devices}", replace(alone, shards=devices)))
        divides = config.heads % devices == config.kv_heads % devices == 0
        if divides and not step.has_adapter:
            found.append((f"tensor={devices}", replace(alone, tensor=devices)))
    ways: tuple[Recompute, ...] = ("off", "block")
    return [
        Laid(name, way, step_memory(config, cells, replace(laid, recompute=way)))
        for name, laid in found
        for way in ways
    ]
