"""Packing: which examples share a row of fixed capacity, and how much of the rows stays empty."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np

from fourstage.errors import InputError


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins filled best-fit decreasing: the longest first, each into the bin with least room for it.

    At most 11/9 of the fewest bins possible, plus 4 (Johnson et al., *Worst-Case Performance Bounds
    for Simple One-Dimensional Packing Algorithms*, 1974); Ding et al., *Fewer Truncations Improve
    Language Modeling*, 2024, pack pretraining documents so. The search for a bin is a bisection.

    Args:
        lengths: cells of each example; one beyond `capacity` gets a bin of its own.
        capacity: cells of a bin.

    Returns:
        Each index in one bin; bins and their members in rising order.

    Raises:
        InputError: a capacity below 1.
    """
    _check(capacity)
    bins: list[list[int]] = []
    # Bins with room left, by their room; a few thousand different rooms at most are kept sorted.
    rooms: list[int] = []
    with_room: dict[int, list[int]] = {}
    for item in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        size = int(lengths[item])
        at = bisect_left(rooms, size)
        if at < len(rooms):
            room = rooms[at]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        else:
            room, chosen = max(capacity, size), len(bins)
            bins.append([])
        bins[chosen].append(item)
        left = room - size
        if left in with_room:
            with_room[left].append(chosen)
        elif left:
            with_room[left] = [chosen]
            insort(rooms, left)
    return sorted(sorted(members) for members in bins)


def next_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of neighbours: a bin is closed when the next example does not fit.

    Raises:
        InputError: a capacity below 1.
    """
    _check(capacity)
    bins: list[list[int]] = []
    filled = 0
    for item, size in enumerate(lengths):
        if not bins or filled + size > capacity:
            bins.append([])
            filled = 0
        bins[-1].append(item)
        filled += size
    return bins


def balanced(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Exactly `parts` bins of about equal sums: the longest first, each into the emptiest bin.

    The fullest is at most 4/3 of the best there is (Graham, *Bounds on Multiprocessing Timing
    Anomalies*, 1969). Bins may stay empty where there are fewer examples; members in rising order.
    """
    loads = [(0, number) for number in range(parts)]
    bins: list[list[int]] = [[] for _ in range(parts)]
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        load, number = heappop(loads)
        bins[number].append(item)
        heappush(loads, (load + lengths[item], number))
    return [sorted(members) for members in bins]


def _check(capacity: int) -> None:
    if capacity < 1:
        raise InputError(f"a capacity of {capacity} holds nothing: write at least 1")


def waste(lengths: Sequence[int], bins: Sequence[Sequence[int]], capacity: int) -> float:
    """Share of the bins' cells that stays empty; a bin beyond `capacity` counts as it is."""
    loads = [sum(lengths[item] for item in members) for members in bins]
    cells = sum(max(capacity, load) for load in loads)
    return 1 - sum(loads) / cells if cells else 0.0


def packing_report(lengths: Sequence[int], capacity: int) -> dict[str, Any]:
    """What packing saves: rows and empty share of three ways to lay examples into rows.

    Returns:
        `examples`, `cells`, `capacity`, `longer` (examples beyond the capacity), and for each of
        `best_fit`, `next_fit` (rows of `capacity` cells) and `padding` (an example a row, padded to
        the longest) its `rows` and `waste`.

    Raises:
        InputError: a capacity below 1.
    """
    report: dict[str, Any] = {
        "examples": len(lengths),
        "cells": int(sum(lengths)),
        "capacity": capacity,
        "longer": sum(length > capacity for length in lengths),
    }
    for name, pack in (("best_fit", best_fit), ("next_fit", next_fit)):
        bins = pack(lengths, capacity)
        report[name] = {"rows": len(bins), "waste": waste(lengths, bins, capacity)}
    longest = max(lengths, default=0)
    alone = [[item] for item in range(len(lengths))]
    report["padding"] = {"rows": len(lengths), "waste": waste(lengths, alone, longest)}
    return report
