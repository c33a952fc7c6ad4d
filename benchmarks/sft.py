"""Trained tokens a second of fine-tuning on ragged rows beside TRL's SFTTrainer, in the same run.

    python benchmarks/sft.py [--rounds 8] [--steps 3] [--threads 2] [--rows 16] [--json FILE]
        [--contenders ours trl trl-grouped trl-packed trl-padding-free] [--ours KEY=VALUE ...]

Rows have lognormal lengths from 20 to 250 tokens, about half of each the prompt. All contenders
start from the same folder, read the same rows, and make updates of as many rows with the same
AdamW; they are timed as they train: TRL inside its own loop, with what it does between its steps,
ours with what its source and its update do. `trl` pads to the longest of a batch, as it does
unless told otherwise; `trl-grouped` draws rows of like lengths, `trl-packed` packs best-fit, and
`trl-padding-free` lays them end to end. Contenders have processes of their own and take turns;
ratios are taken within a round, their median with a 95% bootstrap interval.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pile
import torch
from peers import trl
from peers.fine_tuning import arguments, at, compete, facts_of, fresh_model, results_of, tell
from peers.ours import OurTraining, resolved
from peers.rounds import Gate
from peers.shapes import Shape

from fourstage.data.batch import Batch, Example
from fourstage.data.sources import ExampleSource
from fourstage.data.store import write_store
from fourstage.interchange import load_model, save_model
from fourstage.randomness import numpy_generator
from fourstage.recipe import load
from fourstage.tokenizer import train_tokenizer

SHORTEST, LONGEST = 20, 250
_HELD_OUT = 64
# Median and spread of the lengths' logarithm: a mean of about 95 tokens.
_MEDIAN, _SPREAD = 80.0, 0.6


@dataclass(frozen=True)
class Job:
    """What a contender's process is told.

    Attributes:
        folder: holds model/ and rows.json.
        rows_a_step: rows of an update.
    """

    name: str
    folder: Path
    rows_a_step: int
    rate: float
    device: str
    overrides: Sequence[str] = ()

    def rows(self) -> list[dict[str, list[int]]]:
        return json.loads((self.folder / "rows.json").read_text())


def make_rows(ids: np.ndarray, count: int) -> list[dict[str, list[int]]]:
    """Stretches of `ids` with lognormal lengths; 35-65% of each is its prompt."""
    random, rows = numpy_generator(0, "ragged rows"), []
    lengths = np.exp(random.normal(np.log(_MEDIAN), _SPREAD, count)).clip(SHORTEST, LONGEST)
    for length in lengths.round().astype(int).tolist():
        start = int(random.integers(len(ids) - length))
        prompt = round(length * random.uniform(0.35, 0.65))
        mask = [0] * prompt + [1] * (length - prompt)
        rows.append({"input_ids": ids[start : start + length].tolist(), "completion_mask": mask})
    return rows


def write_start(folder: Path, shape: Shape, count: int) -> Path:
    """A model folder and rows that all start from."""
    texts = list(pile.pages(4, 0))
    tokenizer = train_tokenizer(texts, shape.vocab_size, exact=False)
    ids, _ = tokenizer.encode_batch_flat(texts)
    model = fresh_model(shape, tokenizer.vocab_size, LONGEST + 6)
    save_model(folder / "model", model, tokenizer, card="The start of a benchmark.")
    (folder / "rows.json").write_text(json.dumps(make_rows(np.asarray(ids, np.int64), count)))
    return folder


def examples(rows: Sequence[dict[str, list[int]]]) -> list[Example]:
    return [
        Example(np.array(row["input_ids"]), np.array(row["completion_mask"], bool)) for row in rows
    ]


def play_ours(gate: Gate, job: Job) -> None:
    rows, device = job.rows(), torch.device(job.device)
    training_rows = rows[:-_HELD_OUT]
    store = write_store(job.folder / "store", examples(training_rows), masked=True)
    # A row of n tokens is n - 1 cells.
    batch_tokens = round(job.rows_a_step * float((store.lengths - 1).mean()))
    told = [f"sft.batch_tokens={batch_tokens}", "sft.steps=1000", f"sft.learning_rate={job.rate}"]
    model = load_model(job.folder / "model")
    told += ["data.pretrain=world", f"model.context={model.config.context}", *job.overrides]
    recipe = resolved(load("own-text", told), device, model=model.config)
    training = OurTraining(recipe, device, stage="sft", model=model)
    source, step = ExampleSource(store, batch_tokens, recipe.seed), 0
    is_open = at(gate, device).enter(facts_of(model) | {"batch_tokens": batch_tokens})
    while is_open:
        batch = source.batch(step)
        training.step(batch, job.rate)
        step += 1
        trained = float((batch.streams["loss_weights"] != 0).sum())
        rows_read = len(batch.lengths)
        cells = batch.cells + rows_read
        is_open = gate.passed(trained=trained, cells=cells, all=cells)
    loss = our_loss(training, rows[-_HELD_OUT:])
    gate.leave({"held_out_loss": loss, "steps": step, "chosen": training.chosen})


def our_loss(training: OurTraining, rows: Sequence[dict[str, list[int]]]) -> float:
    """Mean nats a completion token."""
    batch = Batch.language(examples(rows)).to(training.trainer.device)
    training.model.eval()
    with torch.no_grad():
        terms, _ = training.trainer.objective.sums(training.model, batch)
    return float(terms["tokens"] / batch.streams["loss_weights"].sum())


def play_trl(gate: Gate, job: Job) -> None:
    rows, steps = job.rows(), 0
    at(gate, torch.device(job.device))

    def passed(**work: float) -> bool:
        nonlocal steps
        steps += 1
        return gate.passed(**work)

    model = trl.train(
        job.name,
        job.folder / "model",
        rows[:-_HELD_OUT],
        job.rows_a_step,
        LONGEST,
        job.rate,
        lambda model: gate.enter(facts_of(model)),
        passed,
    )
    loss = trl.held_out(model, rows[-_HELD_OUT:])
    gate.leave({"held_out_loss": loss, "steps": steps})


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "rows", 3000, 1e-3, trl.KINDS)
    given = parser.parse_args()

    def job(name: str, start: Path, device: str) -> Job:
        return Job(name, start, given.units, given.rate, device, given.ours)

    records, facts = compete(given, write_start, job, play_ours, play_trl)
    results = results_of(records, "trained_tokens_per_second", "trained")
    for name, record in records.items():
        trained = sum(work["trained"] for work in record.work)
        results[name]["trained_tokens_per_round"] = round(trained / len(record.work))
    last = {"trained a round": "trained_tokens_per_round", "loss": "held_out_loss"}
    tell(given, results, facts, "trained_tokens_per_second", last)


if __name__ == "__main__":
    main()
