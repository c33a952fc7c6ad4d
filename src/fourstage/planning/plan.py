"""What a run will take: tokens, operations, memory and time of each stage, before it is spent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fourstage.model.config import ModelConfig
from fourstage.planning import preferring
from fourstage.planning.facts import DataFacts, RowCount, RowTokens, row_tokens
from fourstage.planning.flops import Work, measuring_work, training_work
from fourstage.planning.memory import Step, rollout_memory, step_memory
from fourstage.planning.resolve import model_config, resolve
from fourstage.planning.rules import Derived
from fourstage.planning.speed import Speed, Trial, measure
from fourstage.planning.steps import Laid, largest_fit, layouts, planned_share, stage_step
from fourstage.recipe import PARTS, STAGES, Compute, Recipe
from fourstage.recipe.preference import learns_otherwise, reads_comparisons

if TYPE_CHECKING:
    import torch

# Share of a device's memory that a plan may fill unless the recipe says.
USABLE = Compute().memory

# Preparation on one core, counted on the embedded world and on 4 MB of English prose: rows a second
# by origin, bytes a second of text read, cleaned and encoded, and of a vocabulary trained.
_ROWS = {
    "world": {"pretrain": 10e3, "sft": 9e3, "reward": 2.5e3, "rl": 14e3},
    "made": {"sft": 1e3, "reward": 1e3, "rl": 1e3},
    "files": {"sft": 5e3, "reward": 5e3, "rl": 5e3},
}
_USUAL_ROWS = 20_000
_TEXT_BYTES, _VOCABULARY_BYTES, _MOST_VOCABULARY_BYTES = 1.4e6, 2e6, 1e8
_BYTES_PER_TOKEN = 4.0
# Libraries imported, a vocabulary of the world, the report written.
_START_SECONDS = 8.0
# Bytes a second to a disk, and bytes a parameter in a checkpoint: fp32 weights, AdamW's moments.
_DISK_BYTES, _CHECKPOINT_BYTES = 5e8, 12


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        batch, unit: what a step takes, such as 1,536 tokens, 16 pairs or 64 episodes.
        tokens: cells trained on, as `tokens` of results.json counts them.
        flops: operations of the updates, as `flops` of results.json counts them.
        other_flops: operations of drawing, scoring, measuring, and of Muon's updates.
        memory_bytes: peak on one device.
        preparing, training, measuring: seconds; training with rollouts and checkpoints.
    """

    stage: str
    steps: int
    batch: int
    unit: str
    tokens: int
    flops: float
    other_flops: float
    memory_bytes: float
    preparing: float
    training: float
    measuring: float

    @property
    def seconds(self) -> float:
        return self.preparing + self.training + self.measuring

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "tokens": self.tokens,
            "flops": self.flops,
            "memory_bytes": round(self.memory_bytes),
            "steps": self.steps,
            "other_flops": self.other_flops,
            "preparing_seconds": round(self.preparing, 1),
            "measuring_seconds": round(self.measuring, 1),
        }


@dataclass(frozen=True)
class Plan:
    """A run of the stages in `stages`.

    Attributes:
        recipe: resolved. derived: what resolving it filled in.
        start_seconds: what is no stage's time, such as training the vocabulary.
        layouts: the memory of the stage that takes most, by layout and by what is computed again.
    """

    recipe: Recipe
    config: ModelConfig
    speed: Speed
    facts: DataFacts
    stages: dict[str, StagePlan]
    derived: list[Derived]
    start_seconds: float
    layouts: list[Laid]

    @property
    def seconds(self) -> float:
        return self.start_seconds + sum(stage.seconds for stage in self.stages.values())

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages.values())

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages.values())

    @property
    def other_flops(self) -> float:
        return sum(stage.other_flops for stage in self.stages.values())

    @property
    def memory_bytes(self) -> float:
        return max(stage.memory_bytes for stage in self.stages.values())

    @property
    def device_hours(self) -> float:
        """Hours of all devices together: those that wait are paid for too."""
        return self.seconds * self.speed.devices / 3600

    @property
    def fits(self) -> bool:
        """Whether every stage leaves a device some of its memory, where that is known."""
        memory = self.facts.memory_bytes
        return memory is None or all(
            stage.memory_bytes <= planned_share(self.recipe, name) * memory
            for name, stage in self.stages.items()
        )

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json."""
        return {
            "stages": {name: stage.to_json() for name, stage in self.stages.items()},
            "totals": {
                "seconds": round(self.seconds, 1),
                "start_seconds": round(self.start_seconds, 1),
                "tokens": self.tokens,
                "flops": self.flops,
                "other_flops": self.other_flops,
                "memory_bytes": round(self.memory_bytes),
            },
            "parameters": self.config.parameters(),
            "active_parameters": self.config.active_parameters(),
            "machine": self.speed.to_json() | {"memory_bytes": self.facts.memory_bytes},
            "derived": [{"key": d.key, "value": d.value, "rule": d.rule} for d in self.derived],
        }


def make_plan(
    recipe: Recipe, facts: DataFacts, speed: Speed, stages: Iterable[str] | None = None
) -> Plan:
    """What a recipe (resolved or not) takes at this speed.

    Args:
        stages: those that are worked on; unless said, all that the last one is made from.

    Raises:
        InputError: the sizes given do not fit one another.
    """
    resolved, derived = resolve(recipe, facts)
    config = model_config(resolved, facts.vocab_size)
    planner = _Planner(resolved, config, facts, speed)
    wanted = set(recipe.needed() if stages is None else stages)
    planned = {stage: planner.stage(stage) for stage in STAGES if stage in wanted}
    return Plan(
        recipe=resolved,
        config=config,
        speed=speed,
        facts=facts,
        stages=planned,
        derived=derived,
        start_seconds=planner.start_seconds(),
        layouts=planner.layouts(max(planned, key=lambda stage: planned[stage].memory_bytes)),
    )


def measured_plan(
    recipe: Recipe,
    facts: DataFacts,
    device: torch.device,
    *,
    devices: int = 1,
    stages: Iterable[str] | None = None,
) -> Plan:
    """The plan for this machine, measured in a few seconds; `devices` processes train together."""
    resolved, _ = resolve(recipe, facts)
    config = model_config(resolved, facts.vocab_size)
    speed = measure(config, device, Trial.of(resolved), devices=devices)
    return make_plan(recipe, facts, speed, stages)


class _Planner:
    """The stages of one resolved recipe on one machine."""

    def __init__(self, recipe: Recipe, config: ModelConfig, facts: DataFacts, speed: Speed):
        self.recipe, self.config, self.facts, self.speed = recipe, config, facts, speed
        self.rows: RowTokens = row_tokens(recipe, facts.counted)

    def stage(self, stage: str) -> StagePlan:
        config = self.config
        training = self._training(stage)
        count = self._counted(stage)
        held_out = count.held_out if count else None
        measuring = measuring_work(self.recipe, stage, self.rows, held_out)
        flops = training.training_flops(config)
        batch, unit = self._batch(stage)
        seconds = self._seconds(training)
        return StagePlan(
            stage=stage,
            steps=int(training.updates),
            batch=batch,
            unit=unit,
            tokens=round(training.trained or training.trained_scalar),
            flops=flops,
            other_flops=training.flops(config) - flops + measuring.flops(config),
            memory_bytes=self._memory(stage, training),
            preparing=self._preparing(stage),
            training=seconds + self._checkpoints(stage, training, seconds),
            measuring=self._seconds(measuring),
        )

    def _counted(self, stage: str) -> RowCount | None:
        """The rows of the stage's own part of the data, where they were counted in its files."""
        return self.facts.counted.get(PARTS[stage])

    def _training(self, stage: str) -> Work:
        share = stage_step(self.config, self.recipe, stage, self.facts).trained_share
        return replace(training_work(self.recipe, stage, self.rows), trained_share=share)

    def _seconds(self, work: Work) -> float:
        config, speed = self.config, self.speed
        return (
            work.training_flops(config) / speed.training
            + work.updates * speed.update_seconds
            + (work.scoring_flops(config) + work.update_flops(config)) / speed.forward
            + work.generated / speed.generation
            + work.waited * speed.step_seconds
        )

    def _batch(self, stage: str) -> tuple[int, str]:
        rl = self.recipe.rl
        if stage == "reward":
            return self.recipe.reward.pairs_per_step or 0, "pairs"
        if stage == "rl" and learns_otherwise(rl):
            return preferring.batch(self.recipe)
        if stage == "rl":
            return (rl.rollout_batch or 0) // (rl.minibatches or 1), "episodes"
        return self.recipe.stage(stage).batch_tokens or 0, "tokens"

    def _memory(self, stage: str, work: Work) -> float:
        """Peak of a stage: in its updates, or where larger while responses are drawn."""
        config, rl = self.config, self.recipe.rl
        cells = self._micro_batch(stage, work)
        held = step_memory(config, cells, self._step(stage))
        if stage != "rl" or reads_comparisons(rl):
            return held.total
        rows, longest = rl.rollout_batch or 0, self.rows.prompt + (rl.max_new_tokens or 0)
        cache = rollout_memory(config, rows, int(longest), device=self.facts.device)
        return max(held.total, held.weights + held.optimiser + held.others + cache)

    def _micro_batch(self, stage: str, work: Work) -> float:
        """Cells of the largest micro-batch."""
        cells = (work.trained or work.trained_scalar) / max(1.0, work.updates)
        return min(self.recipe.stage(stage).micro_batch_tokens or cells, cells)

    def _step(self, stage: str) -> Step:
        """The stage's step, with blocks computed again where the memory asks for it."""
        step = stage_step(self.config, self.recipe, stage, self.facts)
        if self.recipe.compute.recompute == "auto" and self.facts.device == "cuda":
            fit = largest_fit(self.config, self.recipe, stage, self.facts)
            return replace(step, recompute=fit.recompute)
        return step

    def layouts(self, stage: str) -> list[Laid]:
        """What a step of a stage holds, by layout and by what is computed again."""
        cells = self._micro_batch(stage, self._training(stage))
        devices = max(self.speed.devices, self.facts.devices)
        step = stage_step(self.config, self.recipe, stage, self.facts)
        return layouts(self.config, cells, step, devices)

    def _preparing(self, stage: str) -> float:
        """Seconds of the stage's data: written out, made from the text, or read."""
        data, measured = self.recipe.data, self.recipe.evaluation
        origin = data.origin(PARTS[stage])
        drawing = 0.0
        if stage == "pretrain" and origin != "world":
            return 0.0 if self._prepared_before else self._text_bytes() / _TEXT_BYTES
        world = self.recipe.world
        train, held_out = {
            "pretrain": (world.documents, world.validation_documents),
            "sft": (data.demonstrations, measured.instructions),
            "reward": (data.comparisons, measured.pairs),
            "rl": (data.rl_prompts, measured.prompts),
        }[stage]
        if origin == "made" and stage == "reward":
            held_out = min(held_out, max(20, (train or 0) // 10))
        count = self._counted(stage)
        rows = count.train + count.held_out if count else (train or _USUAL_ROWS) + held_out
        if origin == "made" and stage == "reward":
            # The chat model answers each instruction once.
            drawing = rows * self.rows.response / self.speed.generation
        return drawing + (0.0 if self._prepared_before else rows / _ROWS[origin][stage])

    @property
    def _prepared_before(self) -> bool:
        """Nobody rents accelerators for a CPU's work: `fourstage prepare` runs before."""
        return self.speed.source == "data sheet"

    def _text_bytes(self) -> float:
        return self.facts.text_bytes or self.recipe.pretrain.drawn_tokens() * _BYTES_PER_TOKEN

    def start_seconds(self) -> float:
        if self.recipe.data.pretrain == "world" or self.facts.vocab_size or self._prepared_before:
            return _START_SECONDS
        counted = min(self._text_bytes(), _MOST_VOCABULARY_BYTES)
        return _START_SECONDS + counted / _VOCABULARY_BYTES

    def _checkpoints(self, stage: str, work: Work, seconds: float) -> float:
        """Seconds of writing checkpoints of what is trained: every so many steps, by the clock, and
        the best."""
        section, rl = self.recipe.stage(stage), self.recipe.rl
        models = 2 if stage == "rl" and rl.needs_critic else 1
        trained = models * work.trained_share * self.config.parameters()
        one = _CHECKPOINT_BYTES * trained / _DISK_BYTES
        steps = section.steps or 0
        times = 1.0 + sum(
            math.ceil(steps / every)
            for every in (section.checkpoint_every, section.validate_every if stage != "rl" else 0)
            if every
        )
        if section.checkpoint_seconds:
            times += seconds / section.checkpoint_seconds
        # None is begun before the last has been written and a step been made.
        return min(times, float(steps)) * one
