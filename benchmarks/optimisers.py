"""What each optimiser earns: held-out bits a byte, seconds a step and bytes of state.

    OMP_NUM_THREADS=1 python benchmarks/optimisers.py [--params 800k] [--steps 150]
        [--rates 0.5 1 2] [--seeds 1] [--only adamw muon ...]

A model of the embedded world is trained by the recipe's rules for so many steps, with each
optimiser at each multiple of the rule's learning rate, on the same batches. Seconds are those of
the processor in one thread, so that other work on the machine does not count; the optimiser's own
share is timed by itself. The floor is the entropy of the text.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch

from fourstage.data.drawing import text_source
from fourstage.data.prepared import PreparedData
from fourstage.data.store import Store
from fourstage.evaluation.bits import bits_per_byte
from fourstage.evaluation.estimates import Numbers
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.pipeline import prepare
from fourstage.planning import model_config, resolve
from fourstage.recipe import Recipe, recipe_from
from fourstage.recipe.numbers import parse_number
from fourstage.reporting.tables import print_table
from fourstage.training.schedule import learning_rate
from fourstage.training.settings import OPTIMISERS, TrainSettings
from fourstage.training.update import Update

_HELD_OUT = 300


@dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        seconds, own_seconds: of a step and of the optimiser in it, by the processor's clock.
        state_bytes: of the optimiser, a parameter.
    """

    bits: float
    seconds: float
    own_seconds: float
    state_bytes: float


@dataclass(frozen=True)
class Text:
    """The prepared text of a resolved recipe.

    Attributes:
        measure: numbers of a model on held-out documents.
    """

    recipe: Recipe
    vocab_size: int
    train: Store
    measure: Callable[[Transformer], Numbers]


def prepared(folder: Path, params: float, steps: int) -> Text:
    recipe = recipe_from(
        {
            "device": "cpu",
            "data": {"pretrain": "world"},
            "model": {"params": int(params)},
            "pretrain": {"steps": steps},
        }
    )
    prepare(recipe, folder, only="pretrain", say=lambda line: None)
    data = PreparedData.open(folder)
    documents, tokenizer = data.documents()[:_HELD_OUT], data.tokenizer()
    return Text(
        resolve(recipe)[0],
        tokenizer.vocab_size,
        Store.open(folder / "data" / "pretrain" / "train"),
        lambda model: bits_per_byte(model.eval(), tokenizer, documents),
    )


def settings_of(recipe: Recipe, optimiser: str, multiple: float) -> TrainSettings:
    section = recipe.pretrain
    return TrainSettings(
        steps=section.steps or 1,
        learning_rate=multiple * (section.learning_rate or 1e-3),
        optimiser=optimiser,
        schedule=section.schedule or "linear",
        warmup_steps=section.warmup_steps or 0,
        final_fraction=section.final_fraction or 0.0,
        weight_decay=section.weight_decay or 0.0,
        micro_batch_tokens=section.micro_batch_tokens,
    )


def trial(text: Text, optimiser: str, multiple: float, seed: int) -> Trial:
    config = model_config(text.recipe, text.vocab_size)
    model = Transformer(config).initialise(seed)
    settings = settings_of(text.recipe, optimiser, multiple)
    source = text_source(text.recipe, text.train, text.recipe.pretrain.step_cells(), config.context)
    update = Update(model, NextToken(), settings, torch.device("cpu"), Group())
    stepping, own = update.optimiser.step, 0.0

    def timed(rate: float) -> None:
        nonlocal own
        begun = time.process_time()
        stepping(rate)
        own += time.process_time() - begun

    update.optimiser.step = timed  # ty: ignore[invalid-assignment]
    begun = time.process_time()
    for step in range(settings.steps):
        update(source.batch(step), learning_rate(settings, step))
    seconds = time.process_time() - begun
    held = sum(value.numel() * value.element_size() for value in update.optimiser.state().values())
    with torch.no_grad():
        bits = text.measure(model).metrics["validation_bits_per_byte"]
    return Trial(bits, seconds / settings.steps, own / settings.steps, held / config.parameters())


def row_of(name: str, rate: float, found: list[Trial]) -> tuple[str, ...]:
    """What is shown of the trials of one rate; bits with the standard error of their mean."""
    bits = [one.bits for one in found]
    error = f" ±{stdev(bits) / len(bits) ** 0.5:.4f}" if len(bits) > 1 else ""
    return (
        name,
        f"{rate:.2g}",
        f"{fmean(bits):.4f}{error}",
        f"{1e3 * fmean(one.seconds for one in found):.0f}",
        f"{1e3 * fmean(one.own_seconds for one in found):.1f}",
        f"{found[0].state_bytes:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=parse_number, default=800_000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=OPTIMISERS, default=list(OPTIMISERS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = prepared(Path(folder), asked.params, asked.steps)
        section = text.recipe.pretrain
        config = model_config(text.recipe, text.vocab_size)
        rows = []
        for name in asked.only:
            for multiple in asked.rates:
                found = [trial(text, name, multiple, seed) for seed in range(asked.seeds)]
                rows.append(row_of(name, multiple * (section.learning_rate or 0), found))
        floor = text.measure(Transformer(config)).metrics["entropy_bits_per_byte"]
    print_table(
        (
            "optimiser",
            "rate",
            "bits a byte",
            "ms a step",
            "of it its own",
            "state bytes a parameter",
        ),
        rows,
        f"{config.parameters():,} parameters, {section.steps} steps of {section.batch_tokens} "
        f"tokens, {asked.seeds} seeds; the floor is {floor:.4f} bits a byte",
    )


if __name__ == "__main__":
    main()
