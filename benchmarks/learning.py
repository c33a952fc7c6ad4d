"""What is learnt in so many seconds: characters of tinyshakespeare, beside nanoGPT's CPU settings.

    python benchmarks/learning.py tinyshakespeare.txt [--seconds 150] [--rounds 3] [--json FILE]
        [--contenders ours nanogpt nanogpt-2000] [--ours KEY=VALUE ...]

The last tenth of the text is held out; both sides read the same characters, one a token. Each run
is a process of its own, one after the other in rotated order, and has `--seconds` from the moment
it is started: importing, reading, building the model and (ours) timing the machine are counted, and
only the measurement at the end is not.

nanoGPT: a model rewritten from its description (peers/nanogpt.py) with the settings its README
gives for a CPU: context 64, batch 12, 4 layers, 4 heads, width 128, no dropout, learning rate 1e-3
to 1e-4 by a cosine over 2,000 iterations of which 100 warm up, AdamW with beta2 0.99, not compiled.
`nanogpt` has that schedule stretched to end with the time, `nanogpt-2000` as it stands, at 1e-4
from iteration 2,000 on. Ours: what the rules derive for `--params` parameters and as many tokens as
the machine trains in the time, the schedule stretched to end with it too.

Measured over the whole held-out tenth, in nats a character: windows of each model's own context
that advance by half of it, in which every character but those of the first window has at least half
a context before it. Beside it the same with windows side by side, nanoGPT's own kind of estimate.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers.apart import apart
from peers.nanogpt import NanoGPT
from peers.ours import OurTraining, rectangle, resolved
from peers.rounds import rotated
from peers.shapes import Shape
from peers.stepping import PeerTraining
from torch import Tensor

from fourstage.data.drawing import text_source
from fourstage.data.store import write_store
from fourstage.objectives.logprobs import logprobs
from fourstage.planning.resolve import model_config
from fourstage.recipe import Recipe, load
from fourstage.reporting.numbers import compact
from fourstage.reporting.tables import print_table
from fourstage.training.schedule import learning_rate

_CALIBRATION_SECONDS = 1.5
_WINDOWS = 64


@dataclass(frozen=True)
class Job:
    """What a run is told.

    Attributes:
        started: of `time.monotonic`, which all processes of a machine share.
    """

    name: str
    text: Path
    seconds: float
    started: float
    params: str
    overrides: Sequence[str] = ()

    @property
    def progress(self) -> float:
        """Share of the time that has gone."""
        return (time.monotonic() - self.started) / self.seconds


@dataclass(frozen=True)
class Characters:
    """A text as ids of its characters, in their order.

    Attributes:
        train, held_out: [characters].
    """

    size: int
    train: Tensor
    held_out: Tensor

    @classmethod
    def read(cls, path: Path) -> Characters:
        text = path.read_text(encoding="utf-8")
        number = {character: index for index, character in enumerate(sorted(set(text)))}
        ids = torch.tensor([number[character] for character in text])
        end = int(0.9 * len(ids))
        return cls(len(number), ids[:end], ids[end:])


def held_out_nats(
    losses: Callable[[Tensor], Tensor], ids: Tensor, context: int, step: int
) -> float:
    """Mean nats a character over `ids`, each but the first predicted once.

    Args:
        losses: [windows, context + 1] ids -> [windows, context] nats.
        step: by how much a window advances; a character counts in the first that predicts it.
    """
    last = len(ids) - context - 1
    starts = [*range(0, last, step), last]
    total, reached = 0.0, 0
    for at in range(0, len(starts), _WINDOWS):
        part = starts[at : at + _WINDOWS]
        rows = torch.stack([ids[start : start + context + 1] for start in part])
        found = losses(rows).double().cpu()
        for start, row in zip(part, found, strict=True):
            fresh = start + context - reached
            total += float(row[context - fresh :].sum())
            reached = start + context
    return total / (len(ids) - 1)


def measured(
    losses: Callable[[Tensor], Tensor], characters: Characters, context: int
) -> dict[str, float]:
    ids = characters.held_out
    with torch.no_grad():
        return {
            "nats": held_out_nats(losses, ids, context, context // 2),
            "nats_side_by_side": held_out_nats(losses, ids, context, context),
        }


def nanogpt_rate(iteration: float) -> float:
    """The published schedule: warm-up, cosine from 1e-3 to 1e-4, then 1e-4."""
    if iteration < 100:
        return 1e-3 * (iteration + 1) / 101
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, (iteration - 100) / 1900)))
    return 1e-4 + left * 9e-4


def run_nanogpt(job: Job) -> dict[str, Any]:
    torch.manual_seed(1337)
    characters = Characters.read(job.text)
    shape = Shape(characters.size, width=128, layers=4, heads=4, context=64, rows=12)
    model = NanoGPT(shape)
    training = PeerTraining(model, torch.device("cpu"), betas=(0.9, 0.99))
    stretched, step, loss = job.name == "nanogpt", 0, float("nan")
    while (progress := job.progress) < 1:
        starts = torch.randint(len(characters.train) - shape.context, (shape.rows,)).tolist()
        rows = torch.stack([characters.train[at : at + shape.context + 1] for at in starts])
        # Its log_interval=1 reads the loss after every iteration.
        loss = float(training.step(rows, nanogpt_rate(2000 * progress if stretched else step)))
        step += 1
    seconds = job.progress * job.seconds

    def losses(rows: Tensor) -> Tensor:
        logits = model(rows[:, :-1])
        return F.cross_entropy(logits.mT, rows[:, 1:], reduction="none")

    model.eval()
    return {
        **measured(losses, characters, shape.context),
        "training_loss": loss,
        "steps": step,
        "tokens": step * shape.tokens,
        "seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def own_recipe(job: Job, characters: Characters, tokens: int) -> Recipe:
    """A recipe that says the size and the amount of training, the rest by the rules."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "learning.yaml")
        path.write_text("name: learning\ndata: {pretrain: world}\n")
        told = [f"model.params={job.params}", f"pretrain.tokens={tokens}"]
        # The smallest vocabulary of a recipe, all bytes; the model gets a row a character.
        told += ["tokenizer.vocab_size=264", *job.overrides]
        loaded = load(str(path), told)
    return resolved(loaded, torch.device("cpu"), pretrain_tokens=len(characters.train))


def tokens_a_second(recipe: Recipe, characters: Characters) -> float:
    """Of the recipe's training steps here, on a model that is thrown away."""
    training = own_training(recipe, characters)
    context = training.model.config.context
    count = max(1, recipe.pretrain.batch_tokens // context)
    rows = characters.train[: count * (context + 1)].view(count, context + 1)
    training.step(rectangle(rows), 1e-4)
    started, steps = time.monotonic(), 0
    while time.monotonic() < started + _CALIBRATION_SECONDS:
        training.step(rectangle(rows), 1e-4)
        steps += 1
    return steps * count * context / (time.monotonic() - started)


def own_training(recipe: Recipe, characters: Characters) -> OurTraining:
    config = model_config(recipe, characters.size)
    return OurTraining(recipe, torch.device("cpu"), config=config)


def run_ours(job: Job) -> dict[str, Any]:
    characters = Characters.read(job.text)
    guess = own_recipe(job, characters, len(characters.train))
    left = job.seconds * (1 - job.progress) - _CALIBRATION_SECONDS
    tokens = max(1, round(left * tokens_a_second(guess, characters)))
    recipe = own_recipe(job, characters, tokens)
    training = own_training(recipe, characters)
    settings, config = training.settings, training.model.config
    with tempfile.TemporaryDirectory() as folder:
        ids = characters.train.numpy().astype(np.int64)
        store = write_store(Path(folder, "store"), [ids], vocab_size=characters.size)
        source = text_source(recipe, store, recipe.pretrain.step_cells(), config.context)
        step, cells, loss, begun = 0, 0, float("nan"), job.progress
        while (progress := job.progress) < 1:
            batch = source.batch(step)
            share = (progress - begun) / (1 - begun)
            loss = training.step(batch, learning_rate(settings, int(share * settings.steps)))
            step, cells = step + 1, cells + batch.cells
        seconds = job.progress * job.seconds
    if training.trainer.update.average is not None:
        training.trainer.update.average.swap()
    model = training.model.eval()
    return {
        **measured(
            lambda rows: -logprobs(model, rectangle(rows)).view(len(rows), -1),
            characters,
            config.context,
        ),
        "training_loss": loss,
        "steps": step,
        "tokens": cells,
        "seconds": seconds,
        "parameters": config.parameters(),
        "settings": own_settings(recipe) | {"chosen": training.chosen},
    }


def own_settings(recipe: Recipe) -> dict[str, Any]:
    """What the rules derived."""
    values = recipe.to_dict()
    names = ("batch_tokens", "micro_batch_tokens", "learning_rate", "schedule", "warmup_steps")
    names += ("final_fraction", "weight_decay", "beta1", "beta2", "optimiser", "ema", "steps")
    stage = {k: values["pretrain"][k] for k in names if k in values["pretrain"]}
    return {"model": values["model"], "pretrain": stage}


RUNS = {"ours": run_ours, "nanogpt": run_nanogpt, "nanogpt-2000": run_nanogpt}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--params", default="800k", help="of our model")
    parser.add_argument("--threads", type=int, help="of each run; else the machine's own")
    parser.add_argument("--contenders", nargs="+", choices=list(RUNS), default=["ours", "nanogpt"])
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of our recipe")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.threads:
        told = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        os.environ.update(dict.fromkeys(told, str(given.threads)))

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in given.contenders}
    for number in range(given.rounds):
        for name in rotated(list(found), number):
            job = (name, given.text, given.seconds, time.monotonic(), given.params, given.ours)
            row = apart(RUNS[name], Job(*job))
            found[name].append(row)
            print(f"round {number + 1}, {name}: {row['nats']:.4f} nats, {row['steps']:,} steps, "
                  f"{row['seconds']:.1f} s", flush=True)  # fmt: skip
    rows = []
    for name, runs in found.items():
        nats = sorted(row["nats"] for row in runs)
        beside = float(np.median([row["nats_side_by_side"] for row in runs]))
        middle = min(runs, key=lambda row: abs(row["nats"] - float(np.median(nats))))
        sizes = [middle["steps"], compact(middle["tokens"]), compact(middle["parameters"])]
        rows.append([name, float(np.median(nats)), nats[0], nats[-1], beside, *sizes])
    header = ["contender", "nats", "lowest", "highest", "side by side", "steps", "read", "size"]
    print_table(header, rows, f"validation, nats a character after {given.seconds:g} s")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
