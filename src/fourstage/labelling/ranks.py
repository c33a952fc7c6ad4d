"""From labels to ranks, and from ranks to rows that the reward stage reads.

Of two completions a row says which is chosen; ties have no place in such rows. More than two are
written as a ranking, one row a prompt: all pairs of a prompt share its completions, and taken for
independent ones they are overfitted (Ouyang et al. 2022, arXiv:2203.02155, section 3.5). A ranking
also says which are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from fourstage.labelling.drawing import CompletionSet, Item
from fourstage.labelling.labels import Label
from fourstage.labelling.words import turns_of
from fourstage.tasks import Messages

FORMS = ("pairs", "rankings")


def ranks_of(item: Item, labels: Sequence[Label]) -> tuple[int, ...] | None:
    """The rank of each completion, 1 is best and ties share theirs; None until it is known.

    Args:
        labels: those of this item by one labeller, in their order.
    """
    if any(label.said for label in labels):
        return _by_points(len(item.completions), labels)
    return _by_picks(len(item.completions), labels)


def _by_picks(count: int, labels: Sequence[Label]) -> tuple[int, ...] | None:
    """A person picks the best, then the best of the rest; a tie ends it, and so does a skip."""
    left = list(range(count))
    ranks = [0] * count
    for label in labels:
        if label.verdict == "skip":
            return None
        if label.verdict != "best" or label.best is None:
            break
        ranks[label.best] = count - len(left) + 1
        left.remove(label.best)
        if len(left) == 1:
            break
    else:
        return None
    for each in left:
        ranks[each] = count - len(left) + 1
    return tuple(ranks)


def _by_points(count: int, labels: Sequence[Label]) -> tuple[int, ...] | None:
    """A judge compares every pair: a point for a win and half for a tie (Copeland, 1951).

    So a circle of three becomes a tie of three. A pair of which it said nothing that can be read
    counts as a tie, where there are other pairs.
    """
    told = {frozenset(label.shown): label for label in labels}
    if any(frozenset(pair) not in told for pair in combinations(range(count), 2)):
        return None
    if all(label.verdict == "skip" for label in told.values()):
        return None
    points = [0.0] * count
    for label in told.values():
        for each in label.shown:
            points[each] += 0.5 if label.verdict != "best" else float(each == label.best)
    return tuple(1 + sum(other > own for other in points) for own in points)


def rows_of(
    held: CompletionSet,
    ranks: Mapping[str, tuple[int, ...]],
    form: str,
    beside: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Rows of comparisons in the order of the set, with what stands `beside` every one of them.

    Args:
        form: "pairs" (a row for each better completion with each worse one) or "rankings".
    """
    rows: list[dict[str, Any]] = []
    for item in held.items:
        if item.id not in ranks:
            continue
        if form == "rankings":
            told = {"responses": [*map(_answer, item.completions)], "ranks": [*ranks[item.id]]}
            rows.append({"prompt": turns_of(item.task.prompt), **told, **beside})
        else:
            rows += [{**pair, **beside} for pair in _pairs(item, ranks[item.id])]
    return rows


def _pairs(item: Item, ranks: Sequence[int]) -> list[dict[str, Any]]:
    order = sorted(range(len(ranks)), key=lambda index: ranks[index])
    return [
        {
            "prompt": turns_of(item.task.prompt),
            "chosen": _answer(item.completions[better]),
            "rejected": _answer(item.completions[worse]),
        }
        for better, worse in combinations(order, 2)
        if ranks[better] != ranks[worse]
    ]


def _answer(text: str) -> Messages:
    """A turn, as TRL has it: as a bare string one that quotes a transcript would be misread."""
    return [{"role": "assistant", "content": text}]
