"""Rollouts looked at again: what the policy of a checkpoint says of them now, and what is known.

Nothing here writes: a run that is at work may be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from fourstage import tasks as checkers
from fourstage.data.batch import Batch
from fourstage.data.prepared import PreparedData
from fourstage.devices import resolve_device
from fourstage.errors import InputError
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.model.transformer import Transformer
from fourstage.objectives.objective import Trained, trained_cells
from fourstage.objectives.surrogates import SURROGATES, Clip, log_ratio
from fourstage.recipe import RL, Recipe
from fourstage.recipe.preference import learns_otherwise
from fourstage.reporting.rollouts.episodes import (
    CLIPPED,
    FINISHED,
    GOLD,
    Episode,
    episodes_of,
    response_weights,
)
from fourstage.stages.adapting import narrow
from fourstage.stages.context import StageContext
from fourstage.stages.models import frozen, starting_model
from fourstage.tasks import Task
from fourstage.training.checkpoint import Checkpoints, Damaged
from fourstage.training.clock import StageClock
from fourstage.training.weights import weights_of

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

# What the trainer calls the policy's weights where the stage has a critic beside it.
_POLICY = "policy."


def open_stage(
    run: Path,
    recipe: Recipe,
    tokenizer: Tokenizer,
    parents: Mapping[str, Path],
    folder: Path | None = None,
    device: str = "auto",
) -> StageContext:
    """The rl stage of a run, to load its models; it says nothing and nothing is written.

    Args:
        recipe: resolved. folder: where the stage would write, if it is not the run's `rl`.
    """
    folder = folder or Path(run) / "rl"
    return StageContext(
        recipe=recipe,
        run=Path(run),
        stage="rl",
        folder=folder,
        device=resolve_device(device),
        tokenizer=tokenizer,
        parents=parents,
        clock=StageClock(folder),
        say=lambda line: None,
    )


def parents_of_rl(run: Path, recipe: Recipe) -> dict[str, Path]:
    """The model folder that the rl stage of a run starts from.

    Raises:
        InputError: it is not there.
    """
    outside = recipe.rl.source_model
    start = Path(outside) if outside else Path(run) / "sft" / "model"
    if not (start / "config.json").is_file():
        raise InputError(
            f"{start}: the model that rl starts from is not there; write --no-model to see what "
            "the checkpoint alone holds"
        )
    return {"from": start}


def present_policy(run: Path, recipe: Recipe, tokenizer: Tokenizer, step: int) -> Transformer:
    """The policy with the weights that the checkpoint of `step` holds, frozen.

    Raises:
        InputError: what it started from is gone, or the checkpoint is, or is of another model.
    """
    context = open_stage(run, recipe, tokenizer, parents_of_rl(run, recipe))
    policy = starting_model(context)
    narrow(context, policy)
    checkpoints = Checkpoints(context.folder / "checkpoints")
    path = checkpoints.path(step)
    try:
        held = checkpoints.read(step, is_checked=True).tensors["model"]
        put_weights(policy, held)
    except (Damaged, OSError, KeyError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path}: its weights cannot be read ({error}); choose another --step, or write "
            "--no-model"
        ) from error
    return frozen(policy)


@torch.no_grad()
def put_weights(policy: Transformer, held: Mapping[str, Tensor]) -> None:
    """Copies the policy's trained weights from a checkpoint, which may hold a critic beside them.

    Raises:
        KeyError: one is missing.
    """
    start = _POLICY if any(name.startswith(_POLICY) for name in held) else ""
    for name, weight in weights_of(policy).items():
        weight.copy_(held[start + name])


def with_present(batch: Batch, policy: Transformer, section: RL) -> Batch:
    """The rollouts with `now_logprobs`, and where old ones are held `ratios` and `clipped`.

    The ratio is that of the algorithm's loss: of each token, or of its response; the clip took hold
    where the surrogate of the algorithm says so. A response that is left out of the loss has both
    as well, as if it were in it.
    """
    streams = {**batch.streams, "loss_weights": response_weights(batch)}
    asked = Batch(batch.tokens, batch.lengths, batch.targets, streams, batch.documents)
    now = trained_logprobs(policy, asked, section.temperature)
    found = {**batch.streams, "now_logprobs": now}
    if "old_logprobs" in streams and "advantages" in streams and not learns_otherwise(section):
        found |= _ratios(asked, now, section)
    return Batch(batch.tokens, batch.lengths, batch.targets, found, batch.documents)


def _ratios(batch: Batch, now: Tensor, section: RL) -> dict[str, Tensor]:
    """[cells] ratio and clip; 1 and 0 outside of responses."""
    row, cells = section.row(), trained_cells(batch)
    gaps = now[cells] - batch.streams["old_logprobs"][cells]
    surrogate = SURROGATES[row.surrogate](
        now[cells],
        log_ratio(row.ratio, gaps, Trained.of(batch, cells)),
        batch.streams["advantages"][cells],
        Clip(row.clip_low, row.clip_high, row.dual_clip),
    )
    ratios, cut = torch.ones(batch.cells), torch.zeros(batch.cells)
    ratios[cells], cut[cells] = surrogate.ratio, surrogate.cut.float()
    return {"ratios": ratios, CLIPPED: cut}


def with_outcomes(batch: Batch, run: Path, tokenizer: Tokenizer, numbers: Sequence[int]) -> Batch:
    """The rollouts with `finished`, and for episodes `numbers` their `gold` where the prompt has a
    checker; NaN where it is not known, as of what was said to an environment."""
    episodes, stops = episodes_of(batch), set(tokenizer.stop_ids)
    finished = [ends <= stops for ends in map(_last_drawn, episodes)]
    golds = torch.full((len(episodes),), math.nan)
    tasks = {} if "observed" in batch.streams else _checked_tasks(run, tokenizer)
    for number in numbers:
        task = tasks.get(tuple(episodes[number].prompt))
        if task is not None:
            golds[number] = checkers.gold(task, tokenizer.decode(episodes[number].response))
    documents = {**batch.documents, FINISHED: torch.tensor(finished).float(), GOLD: golds}
    return Batch(batch.tokens, batch.lengths, batch.targets, batch.streams, documents)


def _last_drawn(episode: Episode) -> set[int]:
    """The token that each answer of an episode ends with."""
    drawn = [*episode.drawn.tolist(), False]
    return {
        token
        for place, token in enumerate(episode.response)
        if drawn[place] and not drawn[place + 1]
    }


def _checked_tasks(run: Path, tokenizer: Tokenizer) -> dict[tuple[int, ...], Task]:
    """The training prompts of rl that have a checker, by their tokens."""
    rows = PreparedData.open(run).tasks("rl", "train")
    known = [task for task in rows if task.facts.get("checker")]
    return {tuple(tokenizer.chat_prompt(task.prompt)): task for task in known}
