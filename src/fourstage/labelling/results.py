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
    """A summary in lines."""
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
    for told in summary["agreement"]:
        lines += _two(told)
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
    rest = f"{told['ties']} ties where gold differs, gold is equal in {told['gold_equal']}"
    if not told["pairs"]:
        return f"  no pair of which both the labels and gold prefer one; {rest}"
    agreed = _share(told, "agreement")
    return f"  prefers what gold prefers in {agreed} of {told['pairs']} pairs; {rest}"


def _two(told: Mapping[str, Any]) -> list[str]:
    """What two labellers have in common."""
    numbers, names = told["metrics"], " and ".join(told["labellers"])
    if not numbers["pairs_both"]:
        return [f"{names}: no pair that both have labelled"]
    decided = ""
    if "agreement_decided" in numbers:
        decided = f", {_share(told, 'agreement_decided')} of those neither calls a tie"
    chance = "not defined: both always say the same"
    if "kappa" in numbers:
        low, high = told["intervals"]["kappa"]
        chance = f"{numbers['kappa']:.2f} [{low:.2f}, {high:.2f}]"
    return [
        f"{names}: {numbers['pairs_both']:.0f} pairs that both have labelled, "
        f"{numbers['seen_by_both']:.1%} of those that either has",
        f"  they agree on {_share(told, 'agreement')}{decided}; Cohen's kappa {chance}; ties "
        f"{numbers['ties_first']:.1%} and {numbers['ties_second']:.1%}",
    ]


def _share(told: Mapping[str, Any], name: str) -> str:
    """A share with its 95% interval."""
    low, high = told["intervals"][name]
    return f"{told['metrics'][name]:.1%} [{low:.1%}, {high:.1%}]"
