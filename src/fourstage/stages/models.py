"""The models a stage starts from, and the folder it leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from fourstage.errors import InputError
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.likelihood import Opinion, Turn, WithLikelihood
from fourstage.interchange import (
    exportable,
    is_reward_model,
    load_model,
    save_model,
    with_tokenizer,
    with_vocabulary,
)
from fourstage.interchange.rewards import (
    LIKELIHOOD_NUMBERS,
    as_ensemble,
    judges_steps,
    likelihood_of,
    members_of,
)
from fourstage.model.ensemble import Ensemble
from fourstage.model.transformer import Transformer
from fourstage.planning import model_config, parent_folder
from fourstage.planning.parent import at_positions
from fourstage.recipe import RL
from fourstage.recipe.preference import compares, distils, reads_comparisons
from fourstage.reporting.numbers import parameters
from fourstage.stages.adapting import widen
from fourstage.stages.context import StageContext
from fourstage.training.trainer import TrainResult

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

PRODUCTS = {
    "pretrain": ("base model", "It continues documents; it was not taught to answer."),
    "sft": ("chat model", "The base model, fine-tuned on demonstrations."),
    "reward": (
        "reward model",
        "It scores a conversation that ends in `<|reward|>`; it cannot write. The score is raw: "
        "`(score - reward_mean) / reward_std`, both in config.json, is what reinforcement learning "
        "uses.",
    ),
    "rl": ("chat model", "The fine-tuned model after reinforcement learning."),
}
_SHOWN = (
    "validation_bits_per_byte",
    "validation_bits_per_byte_before",
    "replay_bits_per_byte",
    "replay_bits_per_byte_before",
    "entropy_bits_per_byte",
    "task_success",
    "pair_accuracy",
    "pair_accuracy_ceiling",
    "gold_reward_sft",
    "gold_reward",
    "gold_reward_ceiling",
    "accuracy_sft",
    "accuracy",
    "kl",
)


def _learned_by(section: RL) -> str:
    """What a card says of a policy that no policy gradient has trained; else ""."""
    how = f"The fine-tuned model, trained further by {section.algorithm}"
    if reads_comparisons(section):
        return f"{how} on comparisons."
    if compares(section):
        return f"{how} on its own responses, the best against the worst."
    if distils(section):
        return f"{how}: by imitating the best of its responses."
    return ""


def starting_model(context: StageContext) -> Transformer:
    """The language model a stage trains: its parent's, or for pretraining without one a new one.

    What had to be changed in a parent is said.

    Raises:
        InputError: the parent is a reward model, does not fit the run, or the model could not be
            saved.
    """
    folder = context.parents.get("from")
    if folder is not None:
        model, changes = _opened(folder, context)
        for change in changes:
            context.say(f"{context.stage}: {change}")
        return model
    config = model_config(context.recipe, context.tokenizer.vocab_size)
    exportable(config)
    model = Transformer(config).initialise(context.seed, context.recipe.model.width_ratio)
    return model.to(context.device)


def language_model(folder: Path, context: StageContext) -> Transformer:
    """A folder's language model on the run's device, with a row for every token of the tokenizer.

    Raises:
        InputError: it is a reward model, or does not fit the run.
    """
    return _opened(folder, context)[0]


def _opened(folder: Path, context: StageContext) -> tuple[Transformer, list[str]]:
    """`language_model`, and in words what was changed for the run's tokenizer and context."""
    if is_reward_model(folder):
        raise InputError(
            f"{folder} is a reward model and cannot write: give {context.stage} a language model, "
            "such as a run's sft/model"
        )
    theirs, ours = _tokenizer_of(folder), context.tokenizer
    model, changes = load_model(folder), []
    if theirs is None or theirs.is_same_as(ours):
        model = with_vocabulary(model, ours.vocab_size, context.seed)
    elif folder == Path(context.section.source_model or ""):
        model, change = with_tokenizer(model, theirs, ours, context.seed)
        changes.append(change)
    else:
        raise _another_tokenizer(folder)
    fitted = at_context(model, folder, context)
    if fitted is not model:
        changes.append(f"context changed from {_positions(model)} to {_positions(fitted)}")
    exportable(fitted.config)
    return fitted.to(context.device), changes


def reward_model(folder: Path, context: StageContext, key: str = "rl.reward_model") -> Transformer:
    """A folder's reward model, frozen, with its members and its likelihoods where it has them.

    Args:
        key: of the recipe, that names the folder.

    Raises:
        InputError: it is no reward model, or was made with another tokenizer.
    """
    if not is_reward_model(folder):
        raise InputError(
            f"{folder} is no reward model: give {key} a folder with one label, such as a run's "
            "reward/model"
        )
    theirs = _tokenizer_of(folder)
    if theirs is not None and not theirs.is_same_as(context.tokenizer):
        raise _another_tokenizer(folder)
    members, likelihood = members_of(folder), likelihood_of(folder)
    judge: Transformer | Ensemble | WithLikelihood = scorer(folder, context)
    if members:
        judge = as_ensemble(folder, [scorer(member, context) for member in members])
    if likelihood is not None:
        language, told = likelihood
        judge = WithLikelihood(
            judge,
            scorer(language, context),
            Turn.of(context.tokenizer),
            Opinion(*(told[name] for name in LIKELIHOOD_NUMBERS)),
        )
        judge.reward_mean, judge.reward_std = told["mean"], told["std"]
    # What scores is only read through `evaluation.scoring.Scorer`, which all of them are.
    return cast("Transformer", judge.eval().requires_grad_(False))


def judges_as_asked(folder: Path, section: RL) -> None:
    """Raises `InputError` where steps are to be rewarded by a model that did not learn to."""
    if section.step_rewards is None:
        return
    if not judges_steps(folder):
        raise InputError(
            f"rl.step_rewards={section.step_rewards} takes a reward model that learned to judge "
            f"steps, and {folder} did not: give one trained with reward.objective=process, or "
            "leave rl.step_rewards out"
        )
    if members_of(folder):
        raise InputError(
            f"rl.step_rewards={section.step_rewards} reads the steps of one model, and {folder} is "
            "an ensemble: train one with reward.ensemble=1"
        )


def scores_for(folder: Path, context: StageContext) -> bool:
    """Whether a folder's reward model reads the run's tokens."""
    theirs = _tokenizer_of(folder)
    return is_reward_model(folder) and (theirs is None or theirs.is_same_as(context.tokenizer))


def scorer(folder: Path, context: StageContext) -> Transformer:
    """A folder's model with the head that it has, on the run's device."""
    model = with_vocabulary(load_model(folder), context.tokenizer.vocab_size, context.seed)
    return at_context(model, folder, context).to(context.device)


def frozen(model: Transformer) -> Transformer:
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def aside(device: torch.device, *models: torch.nn.Module) -> Generator[None]:
    """Leaves the device's memory to what is trained: nothing asks these models meanwhile."""
    for model in models:
        model.to("cpu")
    try:
        yield
    finally:
        for model in models:
            model.to(device)


def at_context(model: Transformer, folder: Path, context: StageContext) -> Transformer:
    """The model with a position for each cell of the run's documents; itself where it has them.

    A model keeps a context that is longer than the run's. Where it is the parent that the recipe
    was resolved for, its rotary positions become those of the recipe.

    Raises:
        InputError: the context is longer than positions that were learned.
    """
    ours, is_parent = model_config(context.recipe), folder == parent_folder(context.recipe)
    after = at_positions(model.config, ours, is_parent)
    if after is model.config:
        return model
    return model.with_context(after.context, after.rope_scaling, after.rope_theta)


def _positions(model: Transformer) -> str:
    """`4,096 tokens (rope_theta 10,000, yarn x 2)`."""
    config, scaling = model.config, model.config.rope_scaling
    if config.positions != "rotary":
        return f"{config.context:,} tokens"
    stretched = f", {scaling.kind} x {scaling.factor:g}" if scaling is not None else ""
    return f"{config.context:,} tokens (rope_theta {config.rope_theta:,.0f}{stretched})"


def _tokenizer_of(folder: Path) -> Tokenizer | None:
    """The tokenizer saved with a model; None where there is none, and the run's is its."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from fourstage.tokenizer import Tokenizer

    return Tokenizer.load(folder)


def _another_tokenizer(folder: Path) -> InputError:
    return InputError(
        f"{folder} was made with another tokenizer than this run: start a run of its own from "
        "it with --out, or give a model of this run's tokenizer"
    )


def save(
    context: StageContext,
    model: Transformer,
    numbers: Numbers,
    extra_config: Mapping[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes the stage's model folder; its bytes depend on the run's inputs alone.

    `extra_config` and `beside` are those of `save_model`.
    """
    if not context.group.writes:
        return
    product, words = PRODUCTS[context.stage]
    if context.stage == "rl":
        words = _learned_by(context.section) or words
    elif context.stage == "reward" and context.section.likelihood:
        words += (
            " It is what is added to the chat model's opinion in likelihood/, beside which "
            "reinforcement learning reads it: by itself it hardly knows right from wrong."
        )
    adapted = widen(context, model)
    shown = [
        f"| {name} | {numbers.metrics[name]:.4f} |" for name in _SHOWN if name in numbers.metrics
    ]
    table = ["", "| measured | value |", "|---|---|", *shown] if shown else []
    config = model.config
    card = "\n".join(
        [
            f"# {context.recipe.name}: {product}",
            "",
            f"{words} {parameters(config)}, {config.layers} layers of width "
            f"{config.width}, context {config.context}.",
            *(["", adapted] if adapted else []),
            *table,
        ]
    )
    folder = context.folder / "model"
    save_model(
        folder, model, context.tokenizer, card=card, extra_config=extra_config, beside=beside
    )


def results(context: StageContext, numbers: Numbers, trained: TrainResult) -> dict:
    """The content of results.json."""
    return {
        "metrics": {**numbers.metrics, "steps": trained.steps, "skipped_steps": trained.skipped},
        "intervals": numbers.intervals,
        **numbers.extra,
        "seconds": round(context.clock.seconds, 3),
        "tokens": trained.tokens,
        "flops": trained.flops,
        "peak_memory_bytes": round(context.memory.bytes),
        "memory_bytes": round(context.memory.bytes - context.memory.before),
    }
