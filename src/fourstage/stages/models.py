"""The models a stage starts from, and the folder it leaves."""

from __future__ import annotations

from pathlib import Path

from fourstage.errors import InputError
from fourstage.evaluation.estimates import Numbers
from fourstage.interchange import is_reward_model, load_model, save_model, with_vocabulary
from fourstage.model.transformer import Transformer
from fourstage.planning import model_config
from fourstage.stages.context import StageContext
from fourstage.training.trainer import TrainResult

PRODUCTS = {
    "pretrain": ("base model", "It continues documents; it was not taught to answer."),
    "sft": ("chat model", "The base model, fine-tuned on demonstrations."),
    "reward": (
        "reward model",
        "It scores a conversation that ends in `<|reward|>`; it cannot write. The score is raw: "
        "`(score - reward_mean) / reward_std`, both in config.json, is what reinforcement learning "
        "uses.",
    ),
    "rl": ("chat model", "The fine-tuned model after reinforcement learning on a reward model."),
}
_SHOWN = (
    "validation_bits_per_byte",
    "entropy_bits_per_byte",
    "task_success",
    "pair_accuracy",
    "pair_accuracy_ceiling",
    "gold_reward_sft",
    "gold_reward",
    "gold_reward_ceiling",
    "kl",
)


def starting_model(context: StageContext) -> Transformer:
    """The language model a stage trains: its parent's, or for pretraining without one a new one.

    Raises:
        InputError: the parent is a reward model, or does not fit the run's tokenizer.
    """
    folder = context.parents.get("from")
    if folder is not None:
        return language_model(folder, context)
    config = model_config(context.recipe, context.tokenizer.vocab_size)
    model = Transformer(config).initialise(context.seed, context.recipe.model.width_ratio)
    return model.to(context.device)


def language_model(folder: Path, context: StageContext) -> Transformer:
    """A folder's language model on the run's device, with a row for every token of the tokenizer.

    Raises:
        InputError: it is a reward model, or was made with another tokenizer.
    """
    if is_reward_model(folder):
        raise InputError(
            f"{folder} is a reward model and cannot write: give {context.stage} a language model, "
            "such as a run's sft/model"
        )
    model = load_model(folder)
    check_same_tokenizer(folder, context)
    return with_vocabulary(model, context.tokenizer.vocab_size).to(context.device)


def reward_model(folder: Path, context: StageContext) -> Transformer:
    """A folder's reward model, frozen.

    Raises:
        InputError: it is no reward model, or was made with another tokenizer.
    """
    if not is_reward_model(folder):
        raise InputError(
            f"{folder} is no reward model: give rl.reward_model a folder with one label, such as "
            "a run's reward/model"
        )
    check_same_tokenizer(folder, context)
    return frozen(scorer(folder, context))


def scorer(folder: Path, context: StageContext) -> Transformer:
    """A folder's model with a scalar head, on the run's device."""
    model = with_vocabulary(load_model(folder), context.tokenizer.vocab_size)
    return model.to(context.device)


def frozen(model: Transformer) -> Transformer:
    return model.eval().requires_grad_(False)


def check_same_tokenizer(folder: Path, context: StageContext) -> None:
    """Refuses a model whose tokens mean something else than the run's.

    Raises:
        InputError: a text gets other ids.
    """
    if not (folder / "tokenizer.json").is_file():
        return
    from fourstage.tokenizer import Tokenizer

    theirs, ours = Tokenizer.load(folder), context.tokenizer
    probe = "The quick brown fox, 0123456789: ÄÖÜ 你好 \n\t<|x|>"
    same = theirs.encode(probe) == ours.encode(probe) and theirs.stop_ids == ours.stop_ids
    if not same or theirs.reward != ours.reward:
        raise InputError(
            f"{folder} was made with another tokenizer than this run: start a run of its own from "
            "it with --out, or give a model of this run's tokenizer"
        )


def save(context: StageContext, model: Transformer, numbers: Numbers) -> None:
    """Writes the stage's model folder; its bytes depend on the run's inputs alone."""
    if not context.group.writes:
        return
    product, words = PRODUCTS[context.stage]
    shown = [
        f"| {name} | {numbers.metrics[name]:.4f} |" for name in _SHOWN if name in numbers.metrics
    ]
    table = ["", "| measured | value |", "|---|---|", *shown] if shown else []
    config = model.config
    card = "\n".join(
        [
            f"# {context.recipe.name}: {product}",
            "",
            f"{words} {config.parameters():,} parameters, {config.layers} layers of width "
            f"{config.width}, context {config.context}.",
            *table,
        ]
    )
    save_model(context.folder / "model", model, context.tokenizer, card=card)


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
