"""Runs beside the one that is studied: RL at another KL coefficient, reward models of less data.

Each is a run of its own that starts from the studied run's SFT model, by keys that any recipe may
write; so it is resumed, kept and reported on as every run is.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fourstage.errors import InputError
from fourstage.pipeline import prepare
from fourstage.pipeline import run as run_stages
from fourstage.recipe import STAGES, Recipe, recipe_from
from fourstage.recipe.preference import learns_otherwise
from fourstage.study.subject import Say, Subject

# Follow from the number of steps.
_OF_THE_STEPS = ("warmup_steps", "validate_every", "sample_every", "log_every")


def rl_recipe(subject: Subject, coefficient: float, reward: Path | None = None) -> Recipe:
    """RL as the studied run has it, at a fixed KL coefficient; paid by its own reward model, or by
    another."""
    values = _from_sft(subject, "rl", f"kl-{coefficient:g}")
    values["rl"] |= {
        "reward_model": str(reward or subject.reward),
        "kl_coefficient": coefficient,
        "kl_target": None,
    }
    return recipe_from(values)


def reward_recipe(subject: Subject, comparisons: int) -> Recipe:
    """The reward stage as the studied run has it, on fewer comparisons: as many passes over them.

    Raises:
        InputError: the comparisons are files, of which a recipe takes all.
    """
    values = _from_sft(subject, "reward", f"comparisons-{comparisons}")
    there = subject.recipe.data.comparisons
    if subject.recipe.data.origin("preferences") == "files" or not there:
        raise InputError(
            f"--comparisons {comparisons}: {subject.run} reads its comparisons from files, of "
            "which all are taken; train reward models on smaller files yourself, and write "
            "--reward-model DIR for each"
        )
    steps = subject.recipe.reward.steps or 1
    values["data"]["comparisons"] = comparisons
    values["reward"] |= {
        "steps": max(1, math.ceil(steps * comparisons / there)),
        "tokens": None,
        "epochs": None,
        **dict.fromkeys(_OF_THE_STEPS),
    }
    return recipe_from(values)


def _from_sft(subject: Subject, stage: str, suffix: str) -> dict[str, Any]:
    """The recipe's values, in which `stage` alone starts from a folder, the studied SFT model."""
    values = subject.recipe.to_dict()
    values["name"] = f"{subject.recipe.name}-{suffix}"
    for each in STAGES:
        values[each]["from"] = None
    values["rl"]["reward_model"] = None
    values[stage]["from"] = str(subject.sft)
    # Its tokenizer is adopted with it.
    values["tokenizer"]["train"] = False
    return values


def check_coefficients(subject: Subject, option: str) -> None:
    """Raises `InputError` where the rl stage has no KL coefficient."""
    section = subject.recipe.rl
    if learns_otherwise(section):
        raise InputError(
            f"{option}: {subject.run} learns by {section.algorithm}, which has no KL coefficient; "
            f"study a run of ppo, grpo or another policy gradient, or leave {option} out"
        )


def train(recipe: Recipe, folder: Path, stage: str, say: Say) -> Path:
    """Runs one stage of a fork, or goes on with it; its folder.

    Raises:
        InputError, MachineError, Interrupted: as any run.
    """

    def tell(line: str) -> None:
        say(f"  {line}")

    say(f"study: {stage} of {folder}")
    # What a stage reads beside its own data is that of stages which a fork has none of.
    beside = ["sft", *(["pretrain"] if stage == "rl" and recipe.rl.pretraining_mix else [])]
    if not (folder / stage / "results.json").is_file():
        for each in beside:
            prepare(recipe, folder, only=each, say=tell)
    run_stages(recipe, folder, only=stage, say=tell)
    return folder / stage
