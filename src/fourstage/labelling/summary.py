"""What a set's labels come to: counts, agreement, a judge's bias for a place, and gold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from fourstage import tasks as checkers
from fourstage.errors import InputError
from fourstage.evaluation.estimates import Estimate, Numbers
from fourstage.files import write_json
from fourstage.labelling.agreement import TIE, agreement, gold_agreement, verdicts
from fourstage.labelling.drawing import NAME as COMPLETIONS
from fourstage.labelling.drawing import CompletionSet
from fourstage.labelling.labels import Label, by_item, labellers, read_labels
from fourstage.labelling.ranks import ranks_of

NAME = "summary.json"


@dataclass(frozen=True)
class Labelled:
    """All that one labeller said of a set."""

    name: str
    labels: list[Label]
    ranks: dict[str, tuple[int, ...]]

    @property
    def is_judge(self) -> bool:
        return any(label.said for label in self.labels)

    def counts(self) -> dict[str, int]:
        """Prompts and pairs that are labelled, ties among them, prompts all bad or skipped."""
        told = [verdict for ranks in self.ranks.values() for verdict in verdicts(ranks)]
        skipped = {label.item for label in self.labels if label.verdict == "skip"}
        return {
            "prompts": len(self.ranks),
            "pairs": len(told),
            "ties": told.count(TIE),
            "bad": sum(label.verdict == "bad" for label in self.labels),
            "skipped": len(skipped - self.ranks.keys()),
        }


def read_labelled(held: CompletionSet, name: str, path: Path) -> Labelled:
    """The labels in a file, as ranks of the set's items.

    Raises:
        InputError: they are of other completions.
    """
    labels = read_labels(path)
    items = {item.id: item for item in held.items}
    strange = next((label for label in labels if label.item not in items), None)
    if strange is not None:
        raise InputError(
            f"{path}: item {strange.item} is not in {held.folder / COMPLETIONS}: these are labels "
            "of other completions; restore those, or move the labels away"
        )
    found = {each: ranks_of(items[each], given) for each, given in by_item(labels).items()}
    return Labelled(name, labels, {each: rank for each, rank in found.items() if rank is not None})


def everyone(held: CompletionSet) -> list[Labelled]:
    """All labellers of a set, by name."""
    return [read_labelled(held, name, path) for name, path in labellers(held.folder).items()]


def bias(labels: Sequence[Label]) -> dict[str, Any]:
    """What a judge says when the same pair is asked both ways round (Zheng et al. 2023,
    arXiv:2306.05685, section 3.4).

    Returns:
        `pairs` answered both ways, `consistent` (share of them in which the same completion, or a
        tie, came out), `for_first` and `for_second` (pairs in which the same place won both times),
        `with_tie` (a tie one way only), `malformed` answers.
    """
    said = [label.said for label in labels if label.said]
    whole = [each for each in said if "malformed" not in each]
    places = Counter(whole)
    with_tie = sum(each.count("tie") == 1 for each in whole)
    for_first, for_second = places["first", "first"], places["second", "second"]
    changed = for_first + for_second + with_tie
    return {
        "pairs": len(whole),
        "consistent": 1 - changed / len(whole) if whole else None,
        "for_first": for_first,
        "for_second": for_second,
        "with_tie": with_tie,
        "malformed": sum(each.count("malformed") for each in said),
    }


def golds_of(held: CompletionSet, run: Path) -> dict[str, list[float]]:
    """item -> the gold of each completion, of those that a program can check."""
    items = [item for item in held.items if item.task.facts.get("checker")]
    if any(item.task.facts["checker"] == "made" for item in items):
        from fourstage.data.prepared import PreparedData

        PreparedData.open(run)
    return {
        item.id: [checkers.gold(item.task, text) for text in item.completions] for item in items
    }


def summarise(held: CompletionSet, run: Path) -> dict[str, Any]:
    """The summary as JSON, also written to `summary.json` in the set's folder."""
    found = everyone(held)
    golds = golds_of(held, run)
    told: dict[str, Any] = {
        "drawn": held.drawn.to_json(),
        "prompts": len(held.items),
        "labellers": {each.name: _of_labeller(each, golds) for each in found},
        "agreement": [
            {"labellers": [one.name, other.name], **agreement(one.ranks, other.ranks).to_json()}
            for one, other in combinations(found, 2)
        ],
    }
    write_json(held.folder / NAME, told)
    return told


def _of_labeller(labelled: Labelled, golds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    told: dict[str, Any] = dict(labelled.counts())
    if labelled.is_judge:
        told["both_ways"] = bias(labelled.labels)
    if labelled.ranks.keys() & golds.keys():
        compared = gold_agreement(labelled.ranks, golds)
        found: Estimate | None = compared.pop("agreement")
        numbers = Numbers() if found is None else Numbers().add("agreement", found)
        told["gold"] = compared | numbers.to_json()
    return told
