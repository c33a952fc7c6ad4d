"""Data files before anything is trained on them: what they are taken for, what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fourstage.data.documents import cut
from fourstage.data.reading import RawFile, find_files, read_rows, read_text
from fourstage.data.rows import Malformed, Row, recognise
from fourstage.errors import InputError
from fourstage.reporting.numbers import compact, figures
from fourstage.reporting.tables import print_table

_FAULTS_SHOWN = 20
# What each kind of row can be given as.
USES = {
    "text": "data.pretrain",
    "dialogue": "data.sft",
    "comparison": "data.preferences",
    "prompt": "data.prompts",
}


@dataclass
class Findings:
    """What one file holds.

    Attributes:
        kinds: rows (or documents of plain text) by what they were recognised as.
        keys: how many rows have each set of keys.
        characters: of the text, or of what the rows say.
        repeats: rows or documents that say the same as an earlier one.
        faults: one line each: where, and what is wrong.
    """

    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    repeats: int = 0
    faults: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set, repr=False)

    def count(self, kind: str, says: str) -> None:
        self.kinds[kind] += 1
        self.characters += len(says)
        self.repeats += hash(says) in self.seen
        self.seen.add(hash(says))


def examine(paths: Iterable[Path], key: str | None = None) -> list[Findings]:
    """The findings of each file at `paths`, files or folders.

    Raises:
        InputError: a path does not exist, or a folder has nothing to read.
    """
    found, _ = find_files(list(paths), "inspect data")
    return [examine_file(file, key) for file in found]


def examine_file(file: RawFile, key: str | None = None) -> Findings:
    """What a file is recognised as; nothing in it stops the look, faults are gathered."""
    findings = Findings(file.name)
    try:
        if file.holds_rows:
            _examine_rows(file, findings, key)
        else:
            for document in cut(read_text(file), "auto"):
                findings.count("text", document.strip())
    except InputError as error:  # broken lines are told after the good ones were read
        findings.faults += error.faults
    return findings


def _examine_rows(file: RawFile, findings: Findings, key: str | None) -> None:
    for raw in read_rows(file):
        if isinstance(raw.value, dict):
            findings.keys[", ".join(map(str, raw.value))] += 1
        try:
            row = recognise(raw.value, raw.where, key)
        except Malformed as fault:
            findings.faults.append(f"{raw.where}: {fault}")
            continue
        findings.count(row.kind, said(row))


def said(row: Row) -> str:
    """All that a row says, to tell repeats by."""
    return "\n".join([row.as_text(), row.rejected])


def print_findings(findings: Iterable[Findings], console: Console) -> int:
    """A table of the files, the keys of their rows, and their faults; returns how many faults."""
    findings = list(findings)
    rows = []
    for each in findings:
        for kind, count in each.kinds.items() or [("nothing", 0)]:
            use = USES.get(kind, "")
            rows.append([each.name, kind, count, each.repeats, compact(each.characters), use])
    header = ["file", "holds", "rows", "repeats", "characters", "can be"]
    print_table(header, rows, console=console)
    for each in findings:
        for keys, count in each.keys.most_common(3):
            console.print(Text(f"{each.name}: {figures(count)} rows with {keys}", style="dim"))
    faults = [fault for each in findings for fault in each.faults]
    for fault in faults[:_FAULTS_SHOWN]:
        console.print(Text(fault, style="red"), soft_wrap=True)
    if len(faults) > _FAULTS_SHOWN:
        console.print(Text(f"... and {len(faults) - _FAULTS_SHOWN} more", style="red"))
    return len(faults)
