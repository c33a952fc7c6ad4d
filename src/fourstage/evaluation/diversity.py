"""How much a model's responses to one prompt differ: alignment narrows a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fourstage.evaluation.estimates import Numbers

Tokens = Sequence[int]
ORDERS = (1, 2, 3)
# What is looked at of the responses of an iteration of RL.
_GROUPS, _RESPONSES = 64, 4


def ngrams(tokens: Tokens, order: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]


def distinct(responses: Sequence[Tokens], order: int) -> float | None:
    """Different n-grams over all n-grams of the responses (Li et al., 2016); None without any."""
    found = [gram for tokens in responses for gram in ngrams(tokens, order)]
    return len(set(found)) / len(found) if found else None


def self_overlap(responses: Sequence[Tokens], order: int = 2) -> float | None:
    """Mean share of a response's n-grams that another response to the same prompt holds too.

    1 where all are the same text; None with fewer than two responses that have n-grams.
    """
    grams = [set(ngrams(tokens, order)) for tokens in responses]
    shares = [
        len(first & second) / len(first)
        for i, first in enumerate(grams)
        for j, second in enumerate(grams)
        if i != j and first
    ]
    return float(np.mean(shares)) if shares else None


def overlap_of_groups(responses: Sequence[Tokens], group: int) -> float | None:
    """Mean `self_overlap` of a few groups of responses in a row, of a few of each; None where there
    are none to compare. So it costs the same however much is drawn.
    """
    few = [
        responses[first : first + min(group, _RESPONSES)]
        for first in range(0, len(responses), group)[:_GROUPS]
    ]
    overlaps = [value for each in few if (value := self_overlap(each)) is not None]
    return float(np.mean(overlaps)) if overlaps else None


def diversity(groups: Sequence[Sequence[Tokens]], suffix: str = "") -> Numbers:
    """`distinct_1`, `distinct_2`, `distinct_3` and `self_overlap`, means over prompts.

    Each group holds the responses to one prompt, the same number for every prompt and model that
    are to be compared: distinct-n falls with the amount of text.
    """
    numbers = Numbers()
    for order in ORDERS:
        values = [value for group in groups if (value := distinct(group, order)) is not None]
        numbers.add_means(f"distinct_{order}{suffix}", values)
    overlaps = [value for group in groups if (value := self_overlap(group)) is not None]
    return numbers.add_means(f"self_overlap{suffix}", overlaps)
