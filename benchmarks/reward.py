"""Tokens a second of training a reward model beside TRL's RewardTrainer, in the same run.

    python benchmarks/reward.py [--rounds 8] [--steps 3] [--threads 2] [--pairs 16] [--json FILE]
        [--contenders ours trl trl-grouped] [--ours KEY=VALUE ...]

Both open the same folder, a reward model with its scalar head, and read the same comparisons: 40 to
120 tokens a side, a prompt in common, the better answer told by a word that stands in it. Updates
are of as many pairs with the same AdamW, clipping and centring. TRL is timed inside its own loop,
with what it does between its steps; ours with what its source and its update do. Tokens are those
of the rows: padding does not count. `trl` pads to the longest of a batch, as it does unless told
otherwise; `trl-grouped` draws pairs of like lengths. Contenders have processes of their own and
take turns; ratios are taken within a round, their median with a 95% bootstrap interval. The losses
on held-out pairs, before and after, say that both train the same thing.
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
from peers import trl_reward
from peers.ours import OurTraining, resolved
from peers.rounds import Contender, Gate, Record, median_of, ratio_of_rounds, take_turns
from peers.shapes import SIZES, Shape

from fourstage.data.batch import Batch, Example
from fourstage.data.sources import PairSource
from fourstage.data.store import write_store
from fourstage.devices import resolve_device
from fourstage.interchange import load_model, save_model
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.randomness import numpy_generator
from fourstage.recipe import load
from fourstage.reporting.numbers import Number
from fourstage.reporting.tables import print_table
from fourstage.stages.reward import objective_of
from fourstage.tokenizer import Tokenizer, train_tokenizer

SHORTEST, LONGEST = 40, 120
_HELD_OUT = 128
# Median and spread of the lengths' logarithm: a mean of about 73 tokens.
_MEDIAN, _SPREAD = 70.0, 0.35


@dataclass(frozen=True)
class Job:
    """What a contender's process is told.

    Attributes:
        folder: holds model/ and pairs.json.
        pairs_a_step: comparisons of an update.
    """

    name: str
    folder: Path
    pairs_a_step: int
    rate: float
    centring: float
    device: str
    overrides: Sequence[str] = ()

    def pairs(self) -> list[dict[str, list[int]]]:
        return json.loads((self.folder / "pairs.json").read_text())


def make_pairs(ids: np.ndarray, count: int, tokenizer: Tokenizer) -> list[dict[str, list[int]]]:
    """Stretches of `ids` as comparisons of lognormal lengths, each side with an end and
    `<|reward|>`; the chosen answer has a mark in it, a token that stands in no rejected one."""
    random, pairs = numpy_generator(0, "ragged pairs"), []
    mark, ends = int(ids[0]), [tokenizer.end_of_turn, tokenizer.reward]
    ids = ids[ids != mark]

    def stretch(length: int) -> list[int]:
        start = int(random.integers(len(ids) - length))
        return ids[start : start + length].tolist()

    lengths = np.exp(random.normal(np.log(_MEDIAN), _SPREAD, (count, 2)))
    for one, other in lengths.clip(SHORTEST, LONGEST).round().astype(int).tolist():
        prompt = stretch(round(min(one, other) * random.uniform(0.3, 0.6)))
        chosen, rejected = (stretch(size - len(prompt) - len(ends)) for size in (one, other))
        chosen[int(random.integers(len(chosen)))] = mark
        pairs.append(
            {
                "chosen_ids": [*prompt, *chosen, *ends],
                "rejected_ids": [*prompt, *rejected, *ends],
            }
        )
    return pairs


def write_start(folder: Path, shape: Shape, count: int) -> Path:
    """A reward model's folder and comparisons that all start from."""
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
        context=LONGEST + 8,
        # Without norms on queries and keys it is a Llama, transformers' fastest.
        qk_norm=False,
    )
    model = Transformer(config).initialise(0).with_scalar_head(0)
    save_model(folder / "model", model, tokenizer, card="The start of a benchmark.")
    pairs = make_pairs(np.asarray(ids, np.int64), count, tokenizer)
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder


def examples(pairs: Sequence[dict[str, list[int]]]) -> list[Example]:
    """The chosen and the rejected row of each pair, in turn."""
    sides = ("chosen_ids", "rejected_ids")
    return [Example(np.array(pair[side])) for pair in pairs for side in sides]


def play_ours(gate: Gate, job: Job) -> None:
    pairs, device = job.pairs(), torch.device(job.device)
    store = write_store(job.folder / "store", examples(pairs[:-_HELD_OUT]))
    model = load_model(job.folder / "model")
    told = [
        f"reward.pairs_per_step={job.pairs_a_step}",
        "reward.steps=1000",
        "reward.optimiser=adamw",
        f"reward.learning_rate={job.rate}",
        f"reward.centring={job.centring}",
        "data.pretrain=world",
        f"model.context={model.config.context}",
        *job.overrides,
    ]
    recipe = resolved(load("own-text", told), device, model=model.config)
    objective = objective_of(recipe.reward)
    training = OurTraining(recipe, device, stage="reward", model=model, objective=objective)
    source, step = PairSource(store, job.pairs_a_step, recipe.seed), 0
    if device.type == "cuda":
        gate.synchronise = torch.cuda.synchronize
    before = our_loss(training, pairs[-_HELD_OUT:])
    is_open = gate.enter(facts_of(model) | {"held_out_loss_before": before})
    while is_open:
        batch = source.batch(step)
        training.step(batch, job.rate)
        step += 1
        is_open = gate.passed(cells=batch.cells, all=batch.cells)
    loss = our_loss(training, pairs[-_HELD_OUT:])
    gate.leave({"held_out_loss": loss, "steps": step, "chosen": training.chosen})


@torch.no_grad()
def our_loss(training: OurTraining, pairs: Sequence[dict[str, list[int]]]) -> float:
    """Mean Bradley-Terry loss of held-out pairs, without centring; nats."""
    rows = examples(pairs)
    batch = Batch.rows(rows, [number // 2 for number in range(len(rows))])
    training.model.eval()
    _, metrics = training.trainer.objective.sums(training.model, batch.to(training.trainer.device))
    training.model.train()
    total, count = metrics["preference_loss"]
    return float(total) / float(count)


def play_trl(gate: Gate, job: Job) -> None:
    pairs, steps = job.pairs(), 0
    if job.device != "cpu":
        gate.synchronise = torch.cuda.synchronize

    def begun(model: torch.nn.Module) -> bool:
        before = trl_reward.held_out(model, pairs[-_HELD_OUT:])
        model.train()
        return gate.enter(facts_of(model) | {"held_out_loss_before": before})

    def passed(**work: float) -> bool:
        nonlocal steps
        steps += 1
        return gate.passed(**work)

    model = trl_reward.train(
        job.name,
        job.folder / "model",
        pairs[:-_HELD_OUT],
        job.pairs_a_step,
        job.centring,
        job.rate,
        begun,
        passed,
    )
    loss = trl_reward.held_out(model, pairs[-_HELD_OUT:])
    gate.leave({"held_out_loss": loss, "steps": steps})


def facts_of(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
    }


def results_of(records: dict[str, Record]) -> dict[str, Any]:
    ours, found = records["ours"].rates("cells"), {}
    for name, record in records.items():
        rates = record.rates("cells")
        cells, all_cells = (sum(work[key] for work in record.work) for key in ("cells", "all"))
        found[name] = {
            "tokens_per_second": asdict(median_of(rates)),
            "ours_over_it": asdict(ratio_of_rounds(ours, rates)),
            "padding": 1 - cells / all_cells,
            "seconds": record.seconds,
            **record.facts,
        }
    return found


def assert_same_start(results: dict[str, Any], tolerance: float = 1e-3) -> None:
    """Stops a comparison of contenders that did not begin with the same model and pairs.

    Raises:
        SystemExit: their losses before the first step differ.
    """
    losses = {name: row["held_out_loss_before"] for name, row in results.items()}
    if max(losses.values()) - min(losses.values()) > tolerance:
        raise SystemExit(f"contenders begin with different losses: {losses}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny", "3m", "30m"], default="3m")
    parser.add_argument("--pairs", type=int, default=16, help="of an update")
    parser.add_argument("--made", type=int, default=2000, help="pairs there are")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--threads", type=int, help="of each contender; else the machine's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--centring", type=float, default=0.01)
    names = ["ours", *trl_reward.KINDS]
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
            job = Job(name, start, given.pairs, given.rate, given.centring, str(device), given.ours)
            contenders[name] = Contender(play_ours if name == "ours" else play_trl, job)
        records, absent = take_turns(contenders, given.rounds, given.steps, needed=["ours"])
    results = results_of(records)
    assert_same_start(results)
    table = [
        [
            name,
            round(row["tokens_per_second"]["value"]),
            None if name == "ours" else Number(**row["ours_over_it"]),
            f"{row['padding']:.0%}",
            row["held_out_loss_before"],
            row["held_out_loss"],
        ]
        for name, row in results.items()
    ]
    header = ["contender", "tokens/s", "ours over it", "padding", "loss before", "after"]
    title = f"{given.size}, {given.pairs} pairs a step, {device}, {threads} threads"
    print_table(header, table, title)
    if given.json:
        content = {"contenders": results, "absent": absent, "title": title}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
