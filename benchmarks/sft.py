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

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pile
import torch
from peers import trl
from peers.ours import OurTraining, resolved
from peers.rounds import Contender, Gate, Record, median_of, ratio_of_rounds, take_turns
from peers.shapes import SIZES, Shape

from fourstage.data.batch import Batch, Example
from fourstage.data.sources import ExampleSource
from fourstage.data.store import write_store
from fourstage.devices import resolve_device
from fourstage.interchange import load_model, save_model
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.randomness import numpy_generator
from fourstage.recipe import load
from fourstage.reporting.numbers import Number
from fourstage.reporting.tables import print_table
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
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.heads,
        mlp_width=shape.gated_mlp,
        context=LONGEST + 6,
        # Without norms on queries and keys it is a Llama, transformers' fastest.
        qk_norm=False,
    )
    model = Transformer(config).initialise(0)
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
    if device.type == "cuda":
        gate.synchronise = torch.cuda.synchronize
    is_open = gate.enter(facts_of(model) | {"batch_tokens": batch_tokens})
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
    if job.device != "cpu":
        gate.synchronise = torch.cuda.synchronize

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


def facts_of(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
    }


def results_of(records: dict[str, Record]) -> dict[str, Any]:
    ours, found = records["ours"].rates("trained"), {}
    for name, record in records.items():
        rates = record.rates("trained")
        cells = sum(work["cells"] for work in record.work)
        trained = sum(work["trained"] for work in record.work)
        found[name] = {
            "trained_tokens_per_second": asdict(median_of(rates)),
            "ours_over_it": asdict(ratio_of_rounds(ours, rates)),
            "padding": 1 - cells / sum(work["all"] for work in record.work),
            "trained_tokens_per_round": trained / len(record.work),
            "seconds": record.seconds,
            **record.facts,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny", "3m", "30m"], default="3m")
    parser.add_argument("--rows", type=int, default=16, help="of an update")
    parser.add_argument("--made", type=int, default=3000, help="rows there are")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--threads", type=int, help="of each contender; else the machine's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rate", type=float, default=1e-3)
    names = ["ours", *trl.KINDS]
    parser.add_argument("--contenders", nargs="+", choices=names, default=names)
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of our recipe")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    if given.threads:
        told = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        os.environ.update(dict.fromkeys(told, str(given.threads)))
    threads = given.threads or torch.get_num_threads()
    device = resolve_device(given.device)
    with tempfile.TemporaryDirectory() as folder:
        start = write_start(Path(folder), SIZES[given.size], given.made)
        contenders = {}
        for name in dict.fromkeys(["ours", *given.contenders]):
            job = Job(name, start, given.rows, given.rate, str(device), given.ours)
            contenders[name] = Contender(play_ours if name == "ours" else play_trl, job)
        records, absent = take_turns(contenders, given.rounds, given.steps, needed=["ours"])
    results = results_of(records)
    table = [
        [
            name,
            round(row["trained_tokens_per_second"]["value"]),
            None if name == "ours" else Number(**row["ours_over_it"]),
            f"{row['padding']:.0%}",
            round(row["trained_tokens_per_round"]),
            row["held_out_loss"],
        ]
        for name, row in results.items()
    ]
    header = ["contender", "trained/s", "ours over it", "padding", "a round", "loss"]
    title = f"{given.size}, {given.rows} rows a step, {device}, {threads} threads"
    print_table(header, table, title)
    if given.json:
        content = {"contenders": results, "absent": absent, "title": title}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
