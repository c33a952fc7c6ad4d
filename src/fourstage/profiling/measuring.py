"""One stage on made-up batches: first as it is, for its speed, then with a stopwatch in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fourstage import kernels
from fourstage.data.batch import Batch
from fourstage.model.config import ModelConfig
from fourstage.parallel.group import Group
from fourstage.planning.memory import Memory, Step, step_memory
from fourstage.planning.trained import narrowed
from fourstage.profiling.instruments import (
    PARTS,
    WAITED,
    WatchedObjective,
    WatchedSource,
    instrumented,
)
from fourstage.profiling.made import Made, made
from fourstage.profiling.memory import Held, activation_bytes, bytes_of, peak_bytes
from fourstage.profiling.stopwatch import Stopwatch
from fourstage.recipe import Recipe
from fourstage.stages.context import StageContext
from fourstage.training.clock import StageClock
from fourstage.training.metrics import read_rows
from fourstage.training.trainer import TrainResult
from fourstage.training.update import Update

# Steps that are not counted: the first allocate, and warm caches up.
_WARM_UP = 2
_FEWEST_GROUPS, _MOST_STEPS = 3, 200
# A bench writes checkpoints and rows when it wants them.
_QUIET: dict[str, Any] = {
    "warmup_steps": 0,
    "validate_every": 0,
    "sample_every": 0,
    "checkpoint_every": 0,
    "checkpoint_seconds": 0.0,
    "log_every": 1,
    "watch_every": 0,
}


@dataclass(frozen=True)
class StageBench:
    """One stage.

    Attributes:
        tokens_per_second: cells trained, over the whole of a step (rollouts and scoring included).
        flops_per_second: model operations of the updates, as results.json counts them.
        step_seconds: median of the steps that nothing was timed in.
        parts: part -> seconds a step; they sum up to `profiled_seconds`.
        profiled_seconds: a step with the stopwatch in it, and its share of checkpoints.
        checkpoint_seconds: until one stands on the disk; steps wait for a part of it.
        predicted: what the plan expects to be held.
    """

    stage: str
    tokens_per_step: float
    tokens_per_second: float
    flops_per_second: float
    step_seconds: float
    parts: dict[str, float]
    profiled_seconds: float
    checkpoint_seconds: float
    held: Held
    predicted: Memory

    def to_json(self, ceiling: float, peak: float | None) -> dict[str, Any]:
        predicted = dict(vars(self.predicted)) | {"peak": self.predicted.total}
        return {
            "tokens_per_step": round(self.tokens_per_step, 1),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "model_flops_per_second": self.flops_per_second,
            "share_of_ceiling": self.flops_per_second / ceiling,
            "mfu": self.flops_per_second / peak if peak else None,
            "step_seconds": self.step_seconds,
            "profiled_step_seconds": self.profiled_seconds,
            "parts_seconds": self.parts,
            "checkpoint_seconds": self.checkpoint_seconds,
            "memory_bytes": self.held.to_json(),
            "predicted_memory_bytes": {name: round(value) for name, value in predicted.items()},
        }


class Measuring:
    """A stage's models, objective and source, made up, and how they are measured."""

    def __init__(self, recipe: Recipe, config: ModelConfig, stage: str, run: Path, group: Group):
        self.recipe, self.config, self.stage = recipe, config, stage
        self.run, self.group, self.device = run, group, group.device
        cuda = self.device.type == "cuda"
        self.watch = (
            Stopwatch(partial(torch.cuda.synchronize, self.device)) if cuda else Stopwatch()
        )
        self.made: Made = made(stage, recipe, config, self.device, run, self.watch)

    def measure(self, seconds: float) -> StageBench:
        """Trains for about twice `seconds`, and counts what one step holds."""
        self._train("probe", _WARM_UP + self.made.group)
        steps = _WARM_UP + self._steps(seconds, self._step_seconds("probe"))
        trained = self._train("plain", steps)
        a_step = self._step_seconds("plain")
        cells = trained.tokens / trained.steps
        parts, checkpoint = self._parts(steps, a_step)
        micro, held = self._held()
        return StageBench(
            stage=self.stage,
            tokens_per_step=cells,
            tokens_per_second=cells / a_step,
            flops_per_second=trained.flops / trained.steps / a_step,
            step_seconds=a_step,
            parts=parts,
            profiled_seconds=sum(parts.values()),
            checkpoint_seconds=checkpoint,
            held=held,
            predicted=self._predicted(micro),
        )

    def _context(self, name: str) -> StageContext:
        folder = self.run / name
        tokenizer: Any = None  # there are no words to be read
        return StageContext(
            recipe=self.recipe,
            run=self.run,
            stage=self.stage,
            folder=folder,
            device=self.device,
            tokenizer=tokenizer,
            parents={},
            clock=StageClock(folder),
            say=lambda line: None,
            group=self.group,
        )

    def _train(self, name: str, steps: int, watched: bool = False) -> TrainResult:
        """Trains for some steps in a folder of their own; ends with a checkpoint."""
        objective, source = self.made.objective, self.made.source
        section = self.recipe.stage(self.stage)
        settings: dict[str, Any] = {**_QUIET, **self.made.settings, "steps": steps}
        if watched:
            objective = WatchedObjective(objective, self.watch)
            source = WatchedSource(source, self.watch, _WARM_UP)
            # Threads that draw ahead, or that each compute a part, would hide from the watch.
            settings |= {"prefetch": False, "workers": 1, "log_every": section.log_every}
            settings.pop("watch_every")
        return self._context(name).train(self.made.module, objective, source, **settings)

    def _steps(self, seconds: float, step_seconds: float) -> int:
        """Steps that take so many seconds, in whole groups."""
        group = self.made.group
        wanted = min(_MOST_STEPS, seconds / step_seconds) / group
        return group * max(_FEWEST_GROUPS, math.ceil(wanted))

    def _step_seconds(self, name: str) -> float:
        """Seconds of a step: the median over groups, whose steps together do all there is to do."""
        rows = read_rows(self.run / name / "metrics.jsonl")
        rows = [row for row in rows if "tokens_per_second" in row]
        tokens = [0, *(row["tokens"] for row in rows)]
        each = [
            (after - before) / row["tokens_per_second"]
            for (before, after), row in zip(pairwise(tokens), rows, strict=True)
        ][_WARM_UP:]
        group = self.made.group
        return median(sum(each[i : i + group]) for i in range(0, len(each), group)) / group

    def _parts(self, steps: int, a_step: float) -> tuple[dict[str, float], float]:
        """Part -> seconds a step, and the seconds until a checkpoint stands on the disk.

        Each step bears its share of what training waits for one, by how often they are written.
        """
        with instrumented(self.made.module, self.watch):
            self._train("timed", steps, watched=True)
        self.watch.stop()
        seconds = dict(self.watch.seconds)
        checkpoint = seconds["checkpoint"]
        parts = {name: seconds.get(name, 0.0) / (steps - _WARM_UP) for name in PARTS}
        section = self.recipe.stage(self.stage)
        between = [section.checkpoint_every or math.inf]
        if section.checkpoint_seconds:
            between.append(max(1.0, section.checkpoint_seconds / a_step))
        parts["checkpoint"] = checkpoint / min(between)
        return parts, checkpoint + seconds.get(WAITED, 0.0)

    def _held(self) -> tuple[Batch, Held]:
        """One micro-batch, and what a step holds."""
        parts = self.made
        settings = self._context("held").settings(parts.module, **_QUIET, **parts.settings, steps=1)
        update = Update(parts.module, parts.objective, settings, self.device, self.group)
        batch = parts.source.batch(0)
        micro = max(batch.split(settings.micro_batch_tokens), key=lambda each: each.cells)
        step = partial(update, batch, settings.learning_rate)
        step()
        trained = [each for each in parts.module.parameters() if each.requires_grad]
        weights, state = bytes_of(parts.module.parameters()), update.optimiser.state()
        optimiser = bytes_of(state.values())
        frozen = bytes_of(weight for model in parts.frozen for weight in model.parameters())
        held = Held(
            weights=weights,
            gradients=bytes_of(trained),
            optimiser=optimiser,
            frozen=frozen,
            activations=activation_bytes(parts.module, parts.objective, micro),
            peak=weights + optimiser + frozen + peak_bytes(step, self.device),
        )
        return micro, held

    def _predicted(self, micro: Batch) -> Memory:
        """What the plan expects of a step on such micro-batches."""
        section = self.recipe.stage(self.stage)
        in_rl, in_reward = self.stage == "rl", self.stage == "reward"
        step = Step(
            device=self.device.type,
            kernels=self.device.type == "cpu" and kernels.usable(),
            optimiser=section.optimiser or "adamw",
            models=2 if in_rl and self.recipe.rl.needs_critic else 1,
            frozen_models=len(self.made.frozen),
            scores=in_reward,
            average=section.ema > 0,
        )
        trained = micro.cells if in_reward else int((micro.streams["loss_weights"] != 0).sum())
        step = narrowed(step, self.config, section)
        return step_memory(self.config, micro.cells, step, trained)
