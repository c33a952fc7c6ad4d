"""`fourstage tune`: plans the trials of a stage, runs those that are missing, and proposes.

    RUN/tune/<stage>/tune.json     what was asked, every finished trial, the proposal
    RUN/tune/<stage>/tune.html     the plot
    RUN/tune/<stage>/batch-B-rate-R/    a trial's metrics.jsonl; checkpoints while it is unfinished

A trial is written down as soon as it ends, and one that was cut off goes on from its checkpoint.
The stages of the run are read, never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fourstage.errors import InputError, nearest
from fourstage.files import read_json, write_json, write_text
from fourstage.parallel.group import Group
from fourstage.pipeline.decisions import set_aside
from fourstage.pipeline.lineage import outside_models, parents_of
from fourstage.pipeline.lock import clear_unfinished, locked
from fourstage.pipeline.runner import Runner
from fourstage.planning import model_config
from fourstage.planning.facts import row_tokens
from fourstage.planning.flops import training_work
from fourstage.planning.speed import Trial, measure
from fourstage.recipe import Recipe
from fourstage.training.clock import StageClock
from fourstage.training.fitting import Measured
from fourstage.training.progress import clock_time
from fourstage.tuning.grid import Outcome, Setting, beyond, settings
from fourstage.tuning.page import page
from fourstage.tuning.proposal import Proposal, propose
from fourstage.tuning.record import Record
from fourstage.tuning.trials import (
    BATCH_FIELDS,
    TrialContext,
    run_trial,
    trial_recipe,
)

Say = Callable[[str], None]
# A batch's best rate at an end of the grid: so many further rates are tried beyond it.
_FURTHER = 2
# Share of the time asked for that the steps get; the rest builds models and measures.
_STEPS_SHARE = 0.8
# Updates of the largest batch, below which a trial says nothing about a run.
_FEWEST_STEPS = 30


@dataclass(frozen=True)
class Asked:
    """How a range test is asked for.

    Attributes:
        rates, batches: how many of each, in steps of two. seconds: for all of them.
        amount: tokens (pairs) of each trial, instead of what the seconds allow.
    """

    stage: str = "pretrain"
    rates: int = 5
    batches: int = 3
    seconds: float = 600.0
    amount: int | None = None


@dataclass(frozen=True)
class Tuned:
    """A finished range test.

    Attributes:
        folder: of tune.json and tune.html.
        amount: tokens (pairs) of each trial. stage_amount: of the whole stage.
    """

    stage: str
    folder: Path
    outcomes: list[Outcome]
    proposal: Proposal | None
    amount: int
    stage_amount: int

    @property
    def overrides(self) -> list[str]:
        """The proposal as a command line takes it."""
        if self.proposal is None:
            return []
        field = BATCH_FIELDS[self.stage]
        return [
            f"{self.stage}.learning_rate={self.proposal.rate:g}",
            f"{self.stage}.{field}={self.proposal.batch}",
        ]

    def to_json(self) -> dict[str, Any]:
        """What tune.json says beside the trials."""
        return {
            "stage_amount": self.stage_amount,
            "proposal": self.proposal.to_json() if self.proposal else None,
            "overrides": self.overrides,
        }


def check_stage(stage: str) -> None:
    """Refuses a stage that has no validation loss to be compared by.

    Raises:
        InputError: it is RL, or no stage.
    """
    if stage == "rl":
        raise InputError(
            "--stage rl: short runs cannot be compared there, since a higher reward may be the "
            "reward model's error; compare whole runs by gold reward and KL instead"
        )
    if stage not in BATCH_FIELDS:
        near, one = nearest(stage, BATCH_FIELDS), ", ".join(BATCH_FIELDS)
        raise InputError(f"--stage {stage}: no such stage{near}; write one of {one}")


def range_test(recipe: Recipe, run: Path, asked: Asked, group: Group, say: Say = print) -> Tuned:
    """Runs the trials that are missing, and writes what they propose.

    Args:
        run: the folder of the run whose data are used; they are prepared where they are missing.

    Raises:
        InputError: the run or the test is in use, data or a parent's model are missing.
        MachineError: the machine failed; finished trials stay.
        Interrupted: a signal came; finished trials stay, and the one at work is saved.
    """
    check_stage(asked.stage)
    if group.world_size > 1:
        raise InputError("fourstage tune works in one process: start it without torchrun")
    with locked(run):
        clear_unfinished(run)
        runner = Runner(recipe, run, group, say)
        runner.prepare([asked.stage], redo=False)
        resolved = runner.resolved(asked.stage)
        parents = _parents(resolved, run, asked.stage)
        inputs = _inputs(runner, asked)
    folder = run / "tune" / asked.stage
    with locked(folder.parent):
        if Record.of_another(folder, inputs):
            aside = set_aside(folder.parent, asked.stage)
            say(f"another test stood in {folder}: it is now {folder.parent / aside}")
        record = Record(folder, inputs)
        tokenizer = runner.datasets.tokenizer()
        centre = _centre(resolved, asked.stage)
        amount = record.amount or asked.amount or _amount(resolved, asked, group, tokenizer, say)
        record.plan(amount)

        def trial(setting: Setting) -> Outcome:
            at = folder / setting.name
            context = TrialContext(
                recipe=trial_recipe(resolved, asked.stage, setting, amount),
                run=run,
                stage=asked.stage,
                folder=at,
                device=group.device,
                tokenizer=tokenizer,
                parents=parents,
                clock=StageClock(at),
                measured=_measured(at / "measured.json"),
                say=lambda line: None,
                group=group,
            )
            return run_trial(context, setting)

        _announce(asked, resolved, amount, record, say)
        grid = settings(centre.rate, centre.batch, asked.rates, asked.batches)
        outcomes = sweep(grid, trial, record.outcomes, record.add, say)
        tuned = Tuned(
            asked.stage,
            folder,
            outcomes,
            propose(outcomes, centre),
            amount,
            _stage_amount(resolved, asked.stage),
        )
        record.finish(tuned.to_json())
        write_text(folder / "tune.html", page(tuned))
    return tuned


def sweep(
    grid: Sequence[Setting],
    trial: Callable[[Setting], Outcome],
    done: Sequence[Outcome] = (),
    keep: Callable[[Outcome], None] = lambda outcome: None,
    say: Say = print,
) -> list[Outcome]:
    """The grid's trials, and further ones where a batch's best rate lies at an end of its rates.

    Args:
        done: trials that are not run again. keep: called with each that is.
    """
    tried = {outcome.setting.name: outcome for outcome in done}

    def run(setting: Setting, number: str) -> None:
        if setting.name in tried:
            return
        outcome = trial(setting)
        tried[setting.name] = outcome
        keep(outcome)
        shown = "diverged" if outcome.loss is None else f"loss {outcome.loss:.4f}"
        say(f"{number}  batch {setting.batch:,}  rate {setting.rate:.3g}  {shown}")

    for number, setting in enumerate(grid, 1):
        run(setting, f"trial {number}/{len(grid)}")
    for batch in dict.fromkeys(setting.batch for setting in grid):
        for _ in range(_FURTHER):
            rate = beyond([each for each in tried.values() if each.setting.batch == batch])
            if rate is None or rate > 1:
                break
            run(Setting(rate, batch), "further out")
    return list(tried.values())


def _inputs(runner: Runner, asked: Asked) -> dict[str, Any]:
    """Everything that decides what the trials are; where it changed, they are begun anew."""
    told = runner.inputs(asked.stage)
    if told is None:
        raise InputError(
            f"the data of {asked.stage} are made by a model: run `fourstage {asked.stage}` once, "
            f"then tune it"
        )
    return told | {name: value for name, value in vars(asked).items() if name != "stage"}


def _parents(recipe: Recipe, run: Path, stage: str) -> dict[str, Path]:
    """role -> model folder that the trials start from.

    Raises:
        InputError: the run has no such model yet.
    """
    folders = outside_models(stage, recipe)
    for role, parent in parents_of(stage, recipe).items():
        folders[role] = run / parent / "model"
        if not (folders[role] / "config.json").exists():
            raise InputError(
                f"{stage} starts from the model of {parent}, and {run} has none yet: run "
                f"`fourstage {parent}` first, or name a model with {stage}.from=DIR"
            )
    return folders


def _measured(path: Path) -> Measured:
    """What a trial chose by measuring, kept for when it is cut off."""
    return Measured(read_json(path) if path.exists() else None, partial(write_json, path))


def _centre(recipe: Recipe, stage: str) -> Setting:
    section = recipe.stage(stage)
    return Setting(section.learning_rate or 0.0, getattr(section, BATCH_FIELDS[stage]))


def _stage_amount(recipe: Recipe, stage: str) -> int:
    """Tokens (pairs) of the whole stage."""
    return (recipe.stage(stage).steps or 0) * _centre(recipe, stage).batch


def _amount(recipe: Recipe, asked: Asked, group: Group, tokenizer: Any, say: Say) -> int:
    """Tokens (pairs) of a trial: what the time allows at the speed measured here.

    At least 30 steps of the largest batch, at most the whole stage.
    """
    config = model_config(recipe, tokenizer.vocab_size)
    speed = measure(config, group.device, Trial.of(recipe))
    work = training_work(recipe, asked.stage, row_tokens(recipe))
    whole = work.training_flops(config) / speed.training / _STEPS_SHARE
    each = asked.seconds / (asked.rates * asked.batches)
    stage_amount, batch = _stage_amount(recipe, asked.stage), _centre(recipe, asked.stage).batch
    least = _FEWEST_STEPS * max(setting.batch for setting in settings(1.0, batch, 1, asked.batches))
    allowed = math.ceil(stage_amount * min(1.0, each / whole))
    amount = min(stage_amount, max(allowed, least))
    if amount > allowed:
        seconds = asked.seconds * amount / allowed
        say(
            f"tune: {clock_time(asked.seconds)} is too short for {_FEWEST_STEPS} steps of the "
            f"largest batch in each trial: it will take about {clock_time(seconds)}"
        )
    return amount


def _announce(asked: Asked, recipe: Recipe, amount: int, record: Record, say: Say) -> None:
    centre, whole = _centre(recipe, asked.stage), _stage_amount(recipe, asked.stage)
    unit = "pairs" if asked.stage == "reward" else "tokens"
    count = asked.rates * asked.batches
    say(
        f"tune: {asked.stage}, {count} trials of {amount:,} {unit} ({amount / whole:.0%} of the "
        f"stage), around rate {centre.rate:g} and batch {centre.batch:,}"
    )
    if record.outcomes:
        say(f"tune: {len(record.outcomes)} trials are there already")
