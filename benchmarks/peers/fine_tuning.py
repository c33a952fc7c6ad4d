"""What benchmarks of fine-tuning beside TRL's trainers have in common: start, arguments, turns."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fourstage.devices import resolve_device
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.reporting.numbers import Number
from fourstage.reporting.tables import print_table
from peers.rounds import Contender, Gate, Play, Record, median_of, ratio_of_rounds, take_turns
from peers.shapes import SIZES, Shape


def fresh_model(shape: Shape, vocab_size: int, context: int) -> Transformer:
    """Random weights of a model that is a Llama, transformers' fastest: no norms on queries and
    keys."""
    config = ModelConfig(
        vocab_size=vocab_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.heads,
        mlp_width=shape.gated_mlp,
        context=context,
        qk_norm=False,
    )
    return Transformer(config).initialise(0)


def facts_of(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
    }


def at(gate: Gate, device: torch.device) -> Gate:
    """The gate, waiting for what the device still has to do."""
    if device.type == "cuda":
        gate.synchronise = torch.cuda.synchronize
    return gate


def arguments(
    summary: str, unit: str, made: int, rate: float, peers: Iterable[str]
) -> argparse.ArgumentParser:
    """What can be said of such a benchmark; `unit` is what an update is made of, as `rows`."""
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--size", choices=["tiny", "3m", "30m"], default="3m")
    parser.add_argument(f"--{unit}", dest="units", type=int, default=16, help="of an update")
    parser.add_argument("--made", type=int, default=made, help=f"{unit} there are")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--threads", type=int, help="of each contender; else the machine's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rate", type=float, default=rate)
    names = ["ours", *peers]
    parser.add_argument("--contenders", nargs="+", choices=names, default=names)
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of our recipe")
    parser.add_argument("--json", type=Path)
    parser.set_defaults(unit=unit)
    return parser


def compete(
    given: argparse.Namespace,
    write_start: Callable[[Path, Shape, int], Path],
    job: Callable[[str, Path, str], Any],
    ours: Play,
    theirs: Play,
) -> tuple[dict[str, Record], dict[str, Any]]:
    """What was measured of each contender, and the facts of the comparison.

    Args:
        write_start: given a folder, a shape and how many to make; what all start from.
        job: given a name, that folder and a device; what the contender's process is told.
    """
    if given.threads:
        told = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        os.environ.update(dict.fromkeys(told, str(given.threads)))
    threads = given.threads or torch.get_num_threads()
    device = str(resolve_device(given.device))
    with tempfile.TemporaryDirectory() as folder:
        start = write_start(Path(folder), SIZES[given.size], given.made)
        contenders = {
            name: Contender(ours if name == "ours" else theirs, job(name, start, device))
            for name in dict.fromkeys(["ours", *given.contenders])
        }
        records, absent = take_turns(contenders, given.rounds, given.steps, needed=["ours"])
    step = f"{given.units} {given.unit} a step"
    title = f"{given.size}, {step}, {device}, {threads} threads"
    return records, {"title": title, "absent": absent}


def results_of(records: dict[str, Record], rate: str, counted: str) -> dict[str, Any]:
    """Of each contender: how much of `counted` a second, as `rate`, its ratio, its padding."""
    ours, found = records["ours"].rates(counted), {}
    for name, record in records.items():
        rates = record.rates(counted)
        cells, all_cells = (sum(work[key] for work in record.work) for key in ("cells", "all"))
        found[name] = {
            rate: asdict(median_of(rates)),
            "ours_over_it": asdict(ratio_of_rounds(ours, rates)),
            "padding": 1 - cells / all_cells,
            "seconds": record.seconds,
            **record.facts,
        }
    return found


def tell(
    given: argparse.Namespace,
    results: dict[str, Any],
    facts: dict[str, Any],
    rate: str,
    last: dict[str, str],
) -> None:
    """Prints a table, and writes the results to `--json`; `last`: header -> key of more columns."""
    table = [
        [
            name,
            round(row[rate]["value"]),
            None if name == "ours" else Number(**row["ours_over_it"]),
            f"{row['padding']:.0%}",
            *(row[key] for key in last.values()),
        ]
        for name, row in results.items()
    ]
    header = ["contender", rate.replace("_", " "), "ours over it", "padding", *last]
    print_table(header, table, facts["title"])
    if given.json:
        content = {"contenders": results, **facts}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
