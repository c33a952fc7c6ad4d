"""The prepared data of a run: whether every byte is as it was written, and what became of what."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fourstage import files
from fourstage.errors import InputError
from fourstage.reporting.numbers import figures, is_number, share
from fourstage.reporting.tables import print_table

_MOST_LEAVES = 200


@dataclass
class StoreState:
    """A store after it was read whole: the files in it that are not what was written."""

    name: str
    examples: int = 0
    tokens: int = 0
    damaged: list[str] = field(default_factory=list)


@dataclass
class RunFindings:
    """What is known of a run's data.

    Attributes:
        faults: one line each, of what is damaged.
        report: what preparation kept and dropped, by step.
    """

    path: str
    stores: list[StoreState]
    faults: list[str]
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_run(path: str) -> bool:
    """Whether a path is the folder of a run, not one of data files."""
    # Of `os.path`, since a path too long for the system is no fault of ours to raise.
    marks = ("run.json", os.path.join("data", "manifest.json"))
    return any(os.path.isfile(os.path.join(path, mark)) for mark in marks)


def inspect_run(path: str) -> RunFindings:
    """Reads every store of a run whole and compares it with the hashes it was written with."""
    # Stores bring torch, a second that data files need not wait for.
    from fourstage.data.prepared import PreparedData

    prepared = PreparedData(Path(path))
    faults: list[str] = []
    manifest = _read(prepared.folder / "manifest.json", faults)
    report = _read(prepared.folder / "report.json", faults)
    hashes = manifest.get("stores", {})
    found = {p.parent.relative_to(prepared.folder) for p in prepared.folder.rglob("index.json")}
    names = sorted({folder.as_posix() for folder in found} | set(hashes))
    stores = [_state(prepared.folder / name, name, hashes.get(name)) for name in names]
    for store in stores:
        faults += [f"{prepared.folder / store.name}: {fault}" for fault in store.damaged]
    results = _read(prepared.run / "pretrain" / "results.json", faults)
    if "mixture" in results and "pretrain" in report:
        report["pretrain"]["mixture"] = results["mixture"]
    tokenizer = prepared.run / "tokenizer"
    if "tokenizer" in manifest and _changed(tokenizer, manifest["tokenizer"]):
        faults.append(f"{tokenizer} is not the tokenizer that the data were prepared with")
    return RunFindings(path, stores, faults, report)


def _read(path: Path, faults: list[str]) -> dict[str, Any]:
    """A JSON object; empty where there is no file, or a broken one, which is a fault."""
    if not path.exists():
        return {}
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        faults.append(f"{path} is damaged ({error})")
        return {}
    return found if isinstance(found, dict) else {}


def _state(folder: Path, name: str, recorded: str | None) -> StoreState:
    from fourstage.data.store import Store

    try:
        store = Store.open(folder)
        damaged = [f"{each} is not what was written" for each in store.damaged()]
    except (InputError, OSError) as error:
        why = str(error).removeprefix(str(folder)).lstrip(" /")
        return StoreState(name, damaged=[f"cannot be opened: {why}"])
    if recorded is not None and store.hash != recorded:
        damaged.append("index.json is not the one that data/manifest.json names")
    return StoreState(name, len(store), store.tokens_total, damaged)


def _changed(folder: Path, recorded: str) -> bool:
    return not folder.is_dir() or files.sha256_folder(folder) != recorded


def print_run(run: RunFindings, console: Console) -> None:
    """The stores and whether they are whole, then the report of each step."""
    console.print(Text(f"prepared data of {run.path}", style="bold"), soft_wrap=True)
    rows = [[each.name, each.examples, each.tokens, _whole(each)] for each in run.stores]
    print_table(["store", "rows", "tokens", "read whole"], rows, console=console)
    _print_sources(run.report, console)
    for step, report in run.report.items():
        if not isinstance(report, dict):
            continue
        why = report.get("why", {})
        rows = [[*leaf, why.get(leaf[0], "")] for leaf in _leaves(report)][:_MOST_LEAVES]
        if rows:
            print_table([step, "", ""], rows, console=console)


def _whole(store: StoreState) -> Text:
    return Text("damaged", style="bold red") if store.damaged else Text("as written", style="green")


def _print_sources(report: dict[str, Any], console: Console) -> None:
    """What was read and kept of each source of text, and its share of the training tokens."""
    read = report.get("corpus", {}).get("sources", {})
    pretrain = report.get("pretrain", {})
    tokens = pretrain.get("sources", {})
    drawn = {row["source"]: row for row in pretrain.get("mixture", [])}
    total = sum(tokens.values())
    rows = []
    for name, counts in read.items():
        held, row = tokens.get(name), drawn.get(name, {})
        own = row.get("share", held / total if held is not None and total else None)
        kept = counts.get("train", 0) + counts.get("validation", 0)
        epochs = row["epochs"] if row.get("epochs") is not None else "" if row else 1.0
        rows.append([name, counts.get("read"), kept, held, Text(share(own)), epochs])
    if rows:
        header = ["source", "read", "kept", "tokens", "share", "epochs"]
        print_table(header, rows, console=console)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and words of a report with their dotted names; those of sources are a table."""
    for key, inner in value.items():
        place = f"{name}.{key}" if name else str(key)
        if isinstance(inner, dict):
            if place not in ("sources", "why"):
                yield from _leaves(inner, place)
        elif is_number(inner):
            yield place, Text(figures(inner))
        elif isinstance(inner, str):
            yield place, inner
