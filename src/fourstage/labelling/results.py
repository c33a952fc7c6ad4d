"""What labelling leaves: a file of comparisons for the reward stage, and words about the labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourstage.files import write_lines
from fourstage.labelling.drawing import CompletionSet
from fourstage.labelling.labels import ENDING
from fourstage.labelling.ranks import rows_of
from fourstage.labelling.summary import Labelled, read_labelled

_COMPARISONS = ".preferences.jsonl"


def labels_path(folder: Path, labeller: str) -> Path:
    return folder / f"{labeller}{ENDING}"


def comparisons_path(folder: Path, labeller: str) -> Path:
    return folder / f"{labeller}{_COMPARISONS}"


def write_comparisons(
    held: CompletionSet, labeller: str, run_name: str, out: Path | None, form: str | None
) -> tuple[Path, int]:
    """Writes the rows of one labeller, whole or not at all; the file and how many there are.

    Args:
        form: "pairs" or "rankings"; None takes pairs of two completions, rankings of more.
    """
    labelled: Labelled = read_labelled(held, labeller, labels_path(held.folder, labeller))
    drawn = held.drawn
    beside = {
        "labeller": labeller,
        "model": f"{run_name}/{drawn.stage}",
        "model_hash": drawn.model,
        "temperature": drawn.temperature,
        "seed": drawn.seed,
    }
    form = form or ("pairs" if drawn.k == 2 else "rankings")
    path = out or comparisons_path(held.folder, labeller)
    return path, write_lines(path, rows_of(held, labelled.ranks, form, beside))


def words_of(summary: Mapping[str, Any]) -> list[str]:
    """A summary in lines, but for the table of agreement."""
    lines = []
    for name, told in summary["labellers"].items():
        lines.append(
            f"{name}: {told['prompts']} of {summary['prompts']} prompts, {told['pairs']} pairs, "
            f"{told['ties']} of them ties; {told['bad']} prompts all bad, {told['skipped']} skipped"
        )
        if "both_ways" in told:
            lines += _judge(told["both_ways"])
        if "gold" in told:
            lines.append(_gold(told["gold"]))
    return lines


def _judge(told: Mapping[str, Any]) -> list[str]:
    if not told["pairs"]:
        return [f"  no pair was answered both ways; malformed answers: {told['malformed']}"]
    return [
        f"  asked both ways it says the same of {told['consistent']:.1%} of {told['pairs']} pairs; "
        f"of the others {told['for_first']} went to what stood first, {told['for_second']} to what "
        f"stood second, {told['with_tie']} were a tie one way (all count as ties); malformed "
        f"answers: {told['malformed']}"
    ]


def _gold(told: Mapping[str, Any]) -> str:
    low, high = told["intervals"]["agreement"]
    return (
        f"  prefers what gold prefers in {told['metrics']['agreement']:.1%} "
        f"[{low:.1%}, {high:.1%}] of {told['pairs']} pairs; {told['ties']} ties where gold "
        f"differs, gold is equal in {told['gold_equal']}"
    )


def agreement_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table of agreement, a row for each two labellers."""
    from fourstage.reporting.numbers import Number

    def number(told: Mapping[str, Any], name: str) -> Number | None:
        if name not in told["metrics"]:
            return None
        return Number(told["metrics"][name], *told["intervals"].get(name, ()))

    header = ["labellers", "pairs", "seen by both", "agree", "without ties", "kappa", "ties"]
    rows = []
    for told in summary["agreement"]:
        ties = [told["metrics"].get(name) for name in ("ties_first", "ties_second")]
        shares = " ".join("–" if each is None else f"{each:.1%}" for each in ties)
        columns = ("seen_by_both", "agreement", "agreement_decided", "kappa")
        numbers = [number(told, name) for name in columns]
        pairs = int(told["metrics"]["pairs_both"])
        rows.append([" and ".join(told["labellers"]), pairs, *numbers, shares])
    return header, rows
