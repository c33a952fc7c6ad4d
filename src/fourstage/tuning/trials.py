"""One trial: a stage as it is, trained briefly by the very trainer, measured on held-out data."""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage.evaluation.estimates import Numbers
from fourstage.planning import rules
from fourstage.recipe import Recipe
from fourstage.stages.context import StageContext
from fourstage.training.guards import NotFinite
from fourstage.training.metrics import read_rows
from fourstage.training.trainer import TrainResult
from fourstage.tuning.grid import Outcome, Setting

# stage -> the field that says how much a step takes.
BATCH_FIELDS = {"pretrain": "batch_tokens", "sft": "batch_tokens", "reward": "pairs_per_step"}
_ROWS = 100
_CHECKPOINT_SECONDS = 15.0


class _TrainedEnough(Exception):
    """Leaves a stage behind its training: what it would measure and save is no part of a trial."""

    def __init__(self, result: TrainResult):
        self.result = result


@dataclass
class TrialContext(StageContext):
    """A stage's context in which it trains, watches its validation loss once, and ends."""

    def measure(self, name: str, compute: Callable[[], Numbers]) -> Numbers:
        """Nothing: a trial is compared by its validation loss alone."""
        return Numbers()

    def train(self, *parts: Any, **options: Any) -> TrainResult:
        """As the stage trains, without samples.

        Raises:
            _TrainedEnough: always, at the end.
        """
        options["sample"] = None
        raise _TrainedEnough(super().train(*parts, **options))


def trial_recipe(recipe: Recipe, stage: str, setting: Setting, amount: int) -> Recipe:
    """The recipe of a trial of `amount` tokens or pairs: a short run with a whole schedule.

    Its batch does not grow and its rate is not lowered on the way: both are what is asked about.

    Args:
        recipe: resolved.
    """
    steps = max(1, math.ceil(amount / setting.batch))
    changed = {
        "learning_rate": setting.rate,
        BATCH_FIELDS[stage]: setting.batch,
        "steps": steps,
        "warmup_steps": rules.warmup_steps(steps).value,
        "validate_every": steps,
        "sample_every": 0,
        "checkpoint_every": 0,
        "checkpoint_seconds": _CHECKPOINT_SECONDS,
        "keep_checkpoints": 1,
        "log_every": rules.every(steps, _ROWS),
        "watch_every": 0,
        # A rate that makes the loss spike is to show it.
        "on_spike": "warn",
    }
    if stage == "pretrain":
        changed["batch_ramp"] = None
    section = recipe.stage(stage).model_copy(update=changed)
    return recipe.model_copy(update={stage: section})


def run_trial(context: TrialContext, setting: Setting) -> Outcome:
    """Trains one setting, going on from its checkpoint where it was cut off.

    Raises:
        Interrupted: a signal came; the trial is saved.
        MachineError: the machine failed.
    """
    stage = importlib.import_module(f"fourstage.stages.{context.stage}")
    loss, steps, tokens = None, context.section.steps, 0
    try:
        stage.run(context)
    except _TrainedEnough as ended:
        loss, tokens = _final_loss(context.folder), ended.result.tokens
    except NotFinite:
        context.say(f"{setting.name}: diverged")
    speed = _tokens_per_second(context.folder)
    return Outcome(setting, loss, steps, tokens, speed, round(context.clock.seconds, 2))


def forget_checkpoints(folder: Path) -> None:
    """Frees the disk of a finished trial's weights; its rows stay."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _final_loss(folder: Path) -> float | None:
    """The validation loss of the last row; None where it is not finite."""
    found = [row["validation_loss"] for row in _rows(folder) if "validation_loss" in row]
    return found[-1] if found else None


def _tokens_per_second(folder: Path) -> float:
    """Tokens over seconds of steps, of all rows but the first, which warms up."""
    tokens = seconds = 0.0
    before = 0
    for row in _rows(folder):
        taken, before = row["tokens"] - before, row["tokens"]
        if row["step"] > 1 and row["tokens_per_second"]:
            tokens += taken
            seconds += taken / row["tokens_per_second"]
    return round(tokens / seconds, 1) if seconds else 0.0


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of numbers; those of events are of no interest here."""
    rows = read_rows(folder / "metrics.jsonl")
    return [row for row in rows if "tokens_per_second" in row]
