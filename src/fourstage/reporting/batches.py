"""The batch of a step of a finished or running stage, made again by the source the stage uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fourstage.data.batch import Batch
from fourstage.errors import InputError, nearest
from fourstage.recipe.preference import reads_comparisons
from fourstage.reporting.rollouts.held import load_rollout
from fourstage.reporting.runfiles import STAGES

if TYPE_CHECKING:
    from fourstage.recipe import Recipe
    from fourstage.stages.preference import GivenSource
    from fourstage.tokenizer import Tokenizer


def open_tokenizer(run: Path) -> Tokenizer:
    """The run's tokenizer.

    Raises:
        InputError: the run has none yet.
    """
    from fourstage.tokenizer import Tokenizer

    folder = Path(run) / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: no tokenizer yet; run the run's recipe first")
    return Tokenizer.load(folder)


def stage_batch(run: Path, stage: str, step: int | None = None) -> tuple[Batch, bool]:
    """The whole batch of `step` (from 0), and whether its documents are rows to score.

    The batches of the file stages are a function of (recipe, step); those of RL are what its
    newest checkpoint (or that of `step`) holds.

    Raises:
        InputError: the stage is unknown, or its data are not prepared.
    """
    if stage not in STAGES:
        near = nearest(stage, STAGES)
        raise InputError(f"--stage {stage}: no such stage{near}; write one of {', '.join(STAGES)}")
    if stage == "rl":
        recipe = resolved_recipe(run)
        if not reads_comparisons(recipe.rl):
            return load_rollout(run, step)[1], False
        return _compared(run, recipe).batch(step or 0), False
    from fourstage.data.comparing import label_scales, reward_source
    from fourstage.data.drawing import text_source
    from fourstage.data.sources import ExampleSource
    from fourstage.data.store import Store

    folder = Path(run) / "data" / stage / "train"
    if not folder.is_dir():
        raise InputError(f"{folder}: the data of this stage are not prepared yet; run it first")
    recipe, store = resolved_recipe(run), Store.open(folder)
    if stage == "reward":
        many = _told(recipe.reward.pairs_per_step, "reward.pairs_per_step")
        heads = tuple(recipe.reward.heads)
        scored = recipe.reward.objective == "regression"
        scales = label_scales(store, heads) if scored else {}
        return reward_source(store, many, recipe.seed, heads, scales).batch(step or 0), True
    cells = _told(recipe.stage(stage).batch_tokens, f"{stage}.batch_tokens")
    if stage == "sft":
        return ExampleSource(store, cells, recipe.seed).batch(step or 0), False
    documents = text_source(recipe, store, recipe.pretrain.step_cells(), context_of(run, recipe))
    return documents.batch(step or 0), False


def _compared(run: Path, recipe: Recipe) -> GivenSource:
    """What the rl stage learns from, without what the models say of it."""
    from fourstage.parallel.group import Group
    from fourstage.stages.preference import Finishing, given_source

    unfinished = Finishing(None, False, context_of(run, recipe), Group())
    return given_source(Path(run) / "data", recipe.rl, recipe.seed, unfinished)


def _told(value: int | None, field: str) -> int:
    if value is None:
        raise InputError(f"recipe.yaml: {field} is missing, so this is no run's own recipe; run it")
    return value


def resolved_recipe(run: Path) -> Recipe:
    """The recipe that the run wrote down, in which nothing is left to derive."""
    from fourstage import recipe

    path = Path(run) / "recipe.yaml"
    if not path.is_file():
        raise InputError(f"{path}: missing; give the folder of a run, such as runs/smoke")
    return recipe.load(str(path), [])


def context_of(run: Path, recipe: Recipe) -> int:
    """The context of the model, of the recipe or of what the run started from."""
    if recipe.model.context:
        return recipe.model.context
    config = Path(run) / "pretrain" / "model" / "config.json"
    return int(json.loads(config.read_text(encoding="utf-8"))["max_position_embeddings"])
