"""Tokens a second of a training step beside peers of the same shape, in the same run.

    python benchmarks/training.py [--size 3m] [--rounds 8] [--steps 3] [--threads 2] [--json FILE]
        [--text FILE ...] [--contenders ours nanogpt ...] [--ours KEY=VALUE ...] [--learn 200]

Every contender has the same layers, width, heads, vocabulary, rows and AdamW, and operations a
token within 2% by one formula. nanoGPT's and nanochat's models are rewritten from their published
descriptions (peers/); Llama is transformers' own. Ours runs through the update of the trainer, with
settings by the rules: `ours` in one process, `ours-workers` in as many of one thread as there are
threads. Each contender has processes of its own; they take turns in rotated order, and so does a
large product of matrices: the ceiling. Ratios are taken within a round; shown are their medians
with a 95% bootstrap interval. Warming up and compiling are not counted. With `--learn` all train on
to that many steps, so that the held-out loss says more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pile
import torch
from peers.llama import Llama
from peers.nanochat import Nanochat
from peers.nanogpt import NanoGPT
from peers.ours import OurTraining, recipe_of, rectangle
from peers.rounds import Contender, Gate, Record, median_of, ratio_of_rounds, take_turns
from peers.shapes import SIZES, Shape, assert_equal_work, matmul_weights
from peers.stepping import PeerTraining
from peers.text import Rows, write_ids

from fourstage.devices import resolve_device
from fourstage.parallel.group import Group
from fourstage.reporting.numbers import Number, compact
from fourstage.reporting.tables import print_table

PEERS = {"nanogpt": NanoGPT, "nanochat": Nanochat, "llama": Llama}
CONTENDERS = (
    "ours",
    "ours-workers",
    *(f"{peer}{kind}" for peer in PEERS for kind in ("", "-compiled")),
)
_CEILING = "matmul"
_MATRIX = {"cpu": 2048, "cuda": 8192}
_WARM_UP_RATE_STEPS = 10


@dataclass(frozen=True)
class Job:
    """What a contender's process is told."""

    name: str
    rows: Rows
    device: str
    rate: float
    steps: int
    overrides: Sequence[str] = ()

    def rate_at(self, step: int) -> float:
        """The same for all: a linear warm-up, then constant."""
        return self.rate * min(1.0, (step + 1) / _WARM_UP_RATE_STEPS)


def drive(
    gate: Gate,
    job: Job,
    facts: dict[str, Any],
    train: Callable[[torch.Tensor, float], Any],
    held_out: Callable[[list[torch.Tensor]], float],
    chosen: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Steps through the turns, then to the last step, then measures."""
    if job.device != "cpu":
        gate.synchronise = torch.cuda.synchronize
    step, is_open = 0, gate.enter(facts | {"threads": torch.get_num_threads()})
    while is_open:
        train(job.rows.training(step), job.rate_at(step))
        step += 1
        is_open = gate.passed(tokens=job.rows.shape.tokens)
    for more in range(step, job.steps):
        train(job.rows.training(more), job.rate_at(more))
    loss = held_out(job.rows.held_out())
    gate.leave({"held_out_loss": loss, "steps": max(step, job.steps), "chosen": dict(chosen)})


def play_peer(gate: Gate, job: Job) -> None:
    peer, _, kind = job.name.partition("-")
    torch.manual_seed(0)
    model, device = PEERS[peer](job.rows.shape), torch.device(job.device)
    training = PeerTraining(model, device, compiled=kind == "compiled")
    facts = facts_of(model, job.rows.shape, matmul_weights(model))
    drive(gate, job, facts, training.step, training.held_out)


def play_ours(gate: Gate, job: Job) -> None:
    shape, device = job.rows.shape, torch.device(job.device)
    group = Group.from_environment(device)
    recipe = recipe_of(shape, job.steps, device, job.overrides)
    training = OurTraining(recipe, device, group=group)
    facts = facts_of(training.model, shape, training.matmul_weights)
    drive(
        gate,
        job,
        facts | {"processes": group.world_size},
        lambda rows, rate: training.step(rectangle(rows), rate),
        training.held_out,
        training.chosen,
    )


def play_matmul(gate: Gate, job: Job) -> None:
    """Large products of matrices, in bf16 on CUDA and fp32 on the CPU, as all train there."""
    device = torch.device(job.device)
    size, kind = _MATRIX[device.type], torch.float32 if device.type == "cpu" else torch.bfloat16
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    if device.type == "cuda":
        gate.synchronise = torch.cuda.synchronize
    is_open = gate.enter({})
    while is_open:
        for _ in range(4):
            left @ right
        is_open = gate.passed(flops=4 * 2.0 * size**3)
    gate.leave({})


def facts_of(model: torch.nn.Module, shape: Shape, weights: int) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "matmul_weights": weights,
        "flops_per_token": shape.training_flops(weights),
    }


def contenders_of(names: Sequence[str], job: dict[str, Any], threads: int) -> dict[str, Contender]:
    found = {_CEILING: Contender(play_matmul, Job(_CEILING, **job))}
    for name in names:
        play = play_ours if name.startswith("ours") else play_peer
        found[name] = Contender(play, Job(name, **job))
    if "ours-workers" in found:
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        job_of = found["ours-workers"].job
        found["ours-workers"] = Contender(play_ours, job_of, threads, one)
    return found


def results_of(records: dict[str, Record], ours: str) -> dict[str, Any]:
    """Every contender's rate, share of the ceiling, ratio of ours to it, and loss."""
    ceiling = records[_CEILING].rates("flops")
    rows = {}
    for name, record in records.items():
        if name == _CEILING:
            continue
        rates, flops = record.rates(), record.facts["flops_per_token"]
        shares = [rate * flops / most for rate, most in zip(rates, ceiling, strict=True)]
        rows[name] = {
            "tokens_per_second": asdict(median_of(rates)),
            "share_of_ceiling": asdict(median_of(shares)),
            "ours_over_it": asdict(ratio_of_rounds(records[ours].rates(), rates)),
            **record.facts,
            "warm_up_seconds": record.warm_up,
            "seconds": record.seconds,
        }
    return {"ceiling_flops": asdict(median_of(ceiling)), "contenders": rows}


def show(results: dict[str, Any], ours: str, title: str) -> None:
    rows = []
    for name, row in results["contenders"].items():
        rate, share = row["tokens_per_second"]["value"], row["share_of_ceiling"]["value"]
        ratio = None if name == ours else Number(**row["ours_over_it"])
        size = compact(row["parameters"])
        rows.append([name, round(rate), f"{share:.1%}", ratio, size, row["held_out_loss"]])
    header = ["contender", "tokens/s", "ceiling", f"{ours} over it", "size", "loss"]
    print_table(header, rows, title)


def verdict(records: dict[str, Record], ours: Sequence[str]) -> list[str]:
    """Each of ours over the fastest peer."""
    peers = [name for name in records if name not in ours and name != _CEILING]
    if not peers:
        return []
    best = max(peers, key=lambda name: median_of(records[name].rates()).value)
    lines = []
    for name in ours:
        ratio = ratio_of_rounds(records[name].rates(), records[best].rates())
        interval = f"[{ratio.low:.3f}, {ratio.high:.3f}]"
        lines.append(f"{name} over the fastest peer, {best}: {ratio.value:.3f} {interval}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny", "3m", "30m"], default="3m")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--learn", type=int, default=0, help="steps before the held-out loss")
    parser.add_argument("--threads", type=int, help="of each contender; else the machine's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, help="of a batch, instead of the size's own")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of our recipe")
    parser.add_argument("--text", nargs="+", type=Path, help="instead of made text")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not any(name.startswith("ours") for name in given.contenders):
        parser.error("--contenders must name ours or ours-workers")

    if given.threads:
        told = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        os.environ.update(dict.fromkeys(told, str(given.threads)))
    threads = given.threads or torch.get_num_threads()
    device = resolve_device(given.device)
    shape = SIZES[given.size]
    shape = shape.with_rows(given.rows or shape.rows)
    texts = [file.read_text(encoding="utf-8") for file in given.text or []]
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows(Path(folder, "ids.npy"), shape)
        write_ids(rows.path, texts or list(pile.pages(4, 0)), shape.vocab_size)
        job = {
            "rows": rows,
            "device": str(device),
            "rate": given.rate,
            "steps": max(given.learn, 3 + given.rounds * given.steps),
            "overrides": given.ours,
        }
        contenders = contenders_of(given.contenders, job, threads)
        needed = [_CEILING, *(name for name in given.contenders if name.startswith("ours"))]
        records, absent = take_turns(contenders, given.rounds, given.steps, needed=needed)
    ours = needed[1:]
    assert_equal_work({k: r.facts["flops_per_token"] for k, r in records.items() if k != _CEILING})
    fastest = max(ours, key=lambda name: median_of(records[name].rates()).value)
    results = results_of(records, fastest)
    machine = f"{platform.machine()}, {device}, {threads} threads, torch {torch.__version__}"
    words = verdict(records, ours)
    results |= {"machine": machine, "shape": asdict(shape), "absent": absent, "verdict": words}
    ceiling = results["ceiling_flops"]["value"]
    size = f"{given.size}, {shape.rows} x {shape.context} tokens a step"
    show(results, fastest, f"{size}; {machine}; ceiling {ceiling / 1e9:,.0f} GFLOP/s")
    print("\n".join(words))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
