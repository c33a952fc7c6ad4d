"""What is checked and told as work on the stages of a run begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fourstage.errors import InputError
from fourstage.pipeline.decisions import Decision
from fourstage.pipeline.lineage import outside_models, parents_of
from fourstage.recipe import STAGES, Recipe
from fourstage.recipe.preference import reads_comparisons

Say = Callable[[str], None]


def check_outside(stages: Sequence[str], recipe: Recipe) -> None:
    """Refuses folders from outside that cannot play their role, before anything is spent.

    Raises:
        InputError: no such folder, a reward model as a chat model, or the reverse.
    """
    from fourstage.interchange import is_reward_model

    for stage in stages:
        for role, folder in outside_models(stage, recipe).items():
            try:
                scores = is_reward_model(folder)
            except InputError as error:
                told = (f"{stage}.{role}={fault}" for fault in error.faults)
                raise InputError(*told) from error
            if scores and role == "from":
                raise InputError(
                    f"{stage}.from={folder} is a reward model: it scores text and cannot "
                    "write; give a language model, such as a run's sft/model"
                )
            if not scores and role != "from":
                raise InputError(
                    f"{stage}.{role}={folder} is no reward model: give a folder with one "
                    "label, such as a run's reward/model"
                )


def require_ancestors(
    folder: Path, stages: Sequence[str], recipe: Recipe, decisions: Mapping[str, Decision]
) -> None:
    """Refuses a stage whose parent is neither finished nor to be worked on.

    Raises:
        InputError: which one, and what to run first.
    """
    for stage in stages:
        for parent in parents_of(stage, recipe).values():
            if parent in stages or decisions[parent].action == "keep":
                continue
            why = decisions[parent].reason or "it is not finished"
            raise InputError(
                f"{stage} is made from {parent}, and in {folder} {why}: run `fourstage "
                f"{parent}` first, or name a model with {stage}.from=DIR"
            )


def announce(
    stages: Sequence[str], recipe: Recipe, decisions: Mapping[str, Decision], say: Say
) -> None:
    """Says what becomes of each stage: kept, continued, repeated and why, or left out and why."""
    for stage in STAGES:
        if stage not in stages:
            if stage not in decisions and list(stages) == recipe.needed():
                say(f"{stage}: left out, {_instead_of(stage, recipe)}")
            continue
        decision = decisions[stage]
        if decision.action == "keep":
            say(f"{stage}: finished and unchanged, kept")
        elif decision.action == "continue":
            say(f"{stage}: goes on")
        elif decision.reason:
            say(f"{stage}: run again, since {decision.reason}")


def _instead_of(stage: str, recipe: Recipe) -> str:
    """Why a whole run does without a stage."""
    rl = recipe.rl
    if stage == "reward" and rl.reward_model is None and reads_comparisons(rl):
        return f"{rl.algorithm} learns from comparisons themselves"
    if stage == "reward" and rl.environment is not None:
        return "rl.environment gives the rewards"
    if stage == "reward" and not rl.needs_reward_model:
        return "rl.rewards ask no reward model"
    return "a model from outside takes its place"
