"""`fourstage inspect data`: from what a person typed to the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fourstage.data.corpus.recipes import references_of
from fourstage.data.decontamination import Contamination
from fourstage.data.shapes import check_mapping
from fourstage.errors import InputError
from fourstage.recipe.data import Data, Decontaminate
from fourstage.reporting.doctor.entries import as_json as written
from fourstage.reporting.doctor.examining import examine
from fourstage.reporting.doctor.locating import locate
from fourstage.reporting.doctor.measuring import Tools
from fourstage.reporting.doctor.printing import print_report
from fourstage.reporting.doctor.runs import inspect_run, is_run, print_run
from fourstage.tokenizer import Tokenizer


def mapping_of(key: str | None, given: Sequence[str]) -> dict[str, str]:
    """`data.key` and `data.map` of what was typed, `OURS=THEIRS` each.

    Raises:
        InputError: one without `=`, with nothing on a side of it, or of a key that is none of ours.
    """
    mapping = {"text": key} if key else {}
    for each in given:
        ours, _, theirs = each.partition("=")
        if not ours or not theirs:
            raise InputError(f"--map {each}: write OURS=THEIRS, such as --map question=q")
        mapping[ours] = theirs
    check_mapping(mapping)
    return mapping


def inspect_data(
    paths: Sequence[str],
    *,
    as_json: bool,
    mapping: Mapping[str, str],
    tokenizer: Path | None,
    context: int | None,
    against: Sequence[str],
    examples: int,
) -> None:
    """Prints what is found at the paths.

    Raises:
        InputError: a path or the tokenizer does not exist, a file of `against` cannot be read, or
            (when all else was told) the prepared data of a run are damaged.
    """
    runs = [path for path in paths if is_run(path)]
    located = locate([path for path in paths if path not in runs])
    tools = Tools(
        Tokenizer.load(tokenizer) if tokenizer else None,
        _contamination(against),
        mapping,
        context,
        examples,
    )
    found_runs = [inspect_run(path) for path in runs]
    findings = examine(located.files, tools)
    if as_json:
        told = [run.to_json() for run in found_runs]
        sys.stdout.writelines(written(findings, tools, located.passed, told))
        sys.stdout.write("\n")
    else:
        console = Console(highlight=False)
        for run in found_runs:
            print_run(run, console)
        if findings or not runs:
            print_report(findings, tools, console, located.passed, located.folders)
    faults = [fault for run in found_runs for fault in run.faults]
    if faults:
        raise InputError(*faults)


def _contamination(against: Sequence[str]) -> Contamination | None:
    if not against:
        return None
    data = Data(decontaminate=Decontaminate(against=list(against), prompts=False))
    return Contamination(references_of(data))
