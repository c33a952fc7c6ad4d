"""How far two labellers agree, beyond chance; and how far one agrees with gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from fourstage.evaluation.estimates import RESAMPLES, Estimate, Numbers, ratio_of
from fourstage.randomness import numpy_generator

# Of a pair of completions: the first is better, the second, or neither.
FIRST, SECOND, TIE = range(3)
# item -> the rank of each completion.
Ranks = Mapping[str, tuple[int, ...]]


def verdicts(ranks: Sequence[float]) -> list[int]:
    """What ranks say of each pair, in the order of `combinations`; lower is better."""
    return [
        TIE if first == second else FIRST if first < second else SECOND
        for first, second in combinations(ranks, 2)
    ]


def confusions(one: Ranks, other: Ranks) -> np.ndarray:
    """[items, 3, 3] how often one labeller said the row and the other the column, of each item."""
    both = sorted(one.keys() & other.keys())
    counts = np.zeros((len(both), 3, 3))
    for place, item in enumerate(both):
        for row, column in zip(verdicts(one[item]), verdicts(other[item]), strict=True):
            counts[place, row, column] += 1
    return counts


def kappa(confusion: np.ndarray) -> np.ndarray:
    """Cohen's kappa of confusion matrices [..., 3, 3]: [...], NaN where it is not defined.

    `(p_o - p_e) / (1 - p_e)`: p_o is the share of equal verdicts, p_e the share that two would have
    who give theirs as often, by chance (Cohen, A Coefficient of Agreement for Nominal Scales,
    1960). It is not defined where both always say the same one thing.
    """
    total = confusion.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(confusion, axis1=-2, axis2=-1) / total
        margins = confusion.sum(axis=-1) * confusion.sum(axis=-2)
        expected = margins.sum(axis=-1) / total**2
        return (observed - expected) / (1 - expected)


def kappa_of(counts: np.ndarray, seed: int = 0) -> Estimate | None:
    """Kappa of [items, 3, 3] with its 95% percentile interval; None where it is not defined.

    Items are drawn again as wholes, since the pairs of one prompt hang together.
    """
    value = float(kappa(counts.sum(axis=0))) if len(counts) else float("nan")
    if np.isnan(value):
        return None
    generator = numpy_generator(seed, "kappa", len(counts))
    picks = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    drawn = kappa(np.einsum("ri,ijk->rjk", picks, counts))
    # A resample in which both always say the same says nothing of chance.
    low, high = np.percentile(drawn[~np.isnan(drawn)], (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def agreement(one: Ranks, other: Ranks) -> Numbers:
    """What two labellers have in common.

    `pairs_both`, `seen_by_both` (of the pairs that either labelled), `agreement` (the same of the
    three verdicts), `agreement_decided` (of pairs that neither called a tie), `kappa`,
    `ties_first`, `ties_second`.
    """
    counts = confusions(one, other)
    sizes = counts.sum(axis=(1, 2))
    pairs = sum(_pairs(one[item] if item in one else other[item]) for item in {**one, **other})
    numbers = Numbers().add("pairs_both", float(sizes.sum()))
    numbers.add("seen_by_both", float(sizes.sum()) / pairs if pairs else 0.0)
    same = np.trace(counts, axis1=1, axis2=2)
    decided = counts[:, :TIE, :TIE]
    numbers.add_ratios("agreement", same, sizes)
    numbers.add_ratios(
        "agreement_decided",
        np.trace(decided, axis1=1, axis2=2),
        decided.sum(axis=(1, 2)),
    )
    found = kappa_of(counts)
    if found is not None:
        numbers.add("kappa", found)
    if len(counts):
        numbers.add_ratios("ties_first", counts[:, TIE].sum(axis=1), sizes)
        numbers.add_ratios("ties_second", counts[:, :, TIE].sum(axis=1), sizes)
    return numbers


def _pairs(ranks: Sequence[int]) -> int:
    return len(ranks) * (len(ranks) - 1) // 2


def gold_agreement(ranks: Ranks, golds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """How often labels that prefer one completion prefer what gold prefers.

    Args:
        golds: item -> the gold of each completion, of the items that have one.

    Returns:
        `pairs` that count, `agreement` (None without any), and those left out: `gold_equal`, and
        `ties` of the labeller where gold differs.
    """
    same, counted, equal, ties = [], [], 0, 0
    for item in sorted(ranks.keys() & golds.keys()):
        told = verdicts(ranks[item])
        true = verdicts([-gold for gold in golds[item]])
        equal += sum(each == TIE for each in true)
        ties += sum(a == TIE and b != TIE for a, b in zip(told, true, strict=True))
        both = [(a, b) for a, b in zip(told, true, strict=True) if TIE not in (a, b)]
        same.append(sum(a == b for a, b in both))
        counted.append(len(both))
    found = ratio_of(same, counted) if sum(counted) else None
    return {"pairs": sum(counted), "agreement": found, "gold_equal": equal, "ties": ties}
