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

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pile
import torch
from peers import trl_reward
from peers.fine_tuning import arguments, at, compete, facts_of, fresh_model, results_of, tell
from peers.ours import OurTraining, resolved
from peers.rounds import Gate
from peers.shapes import Shape

from fourstage.data.batch import Batch, Example
from fourstage.data.sources import PairSource
from fourstage.data.store import write_store
from fourstage.interchange import load_model, save_model
from fourstage.randomness import numpy_generator
from fourstage.recipe import load
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
    model = fresh_model(shape, tokenizer.vocab_size, LONGEST + 8).with_scalar_head(0)
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
    before = our_loss(training, pairs[-_HELD_OUT:])
    is_open = at(gate, device).enter(facts_of(model) | {"held_out_loss_before": before})
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
    at(gate, torch.device(job.device))

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


def assert_same_start(results: dict[str, Any], tolerance: float = 1e-3) -> None:
    """Stops a comparison of contenders that did not begin with the same model and pairs.

    Raises:
        SystemExit: their losses before the first step differ.
    """
    losses = {name: row["held_out_loss_before"] for name, row in results.items()}
    if max(losses.values()) - min(losses.values()) > tolerance:
        raise SystemExit(f"contenders begin with different losses: {losses}")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "pairs", 2000, 3e-4, trl_reward.KINDS)
    parser.add_argument("--centring", type=float, default=0.01)
    given = parser.parse_args()

    def job(name: str, start: Path, device: str) -> Job:
        return Job(name, start, given.units, given.rate, given.centring, device, given.ours)

    records, facts = compete(given, write_start, job, play_ours, play_trl)
    results = results_of(records, "tokens_per_second", "cells")
    assert_same_start(results)
    last = {"loss before": "held_out_loss_before", "after": "held_out_loss"}
    tell(given, results, facts, "tokens_per_second", last)


if __name__ == "__main__":
    main()
