"""Dealing the rows or heads of a kernel out to as many threads as torch may use."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Floats below which another thread costs more than it does.
_WORTH_A_THREAD = 2**16


def parts(count: int, floats: int) -> list[tuple[int, int]]:
    """`count` items cut into one range a thread; one range where there is little to do.

    Args:
        floats: that the call reads or writes.
    """
    threads = max(1, min(torch.get_num_threads(), count, floats // _WORTH_A_THREAD))
    edges = [count * i // threads for i in range(threads + 1)]
    return list(itertools.pairwise(edges))


def deal(ranges: list[tuple[int, int]], call: Callable[[int, int, int], object]) -> list[object]:
    """`call(number, first, end)` for each range, side by side; what they returned, in order.

    ctypes lets go of Python's lock while C runs, so threads do run at the same time.
    """
    if len(ranges) == 1:
        return [call(0, *ranges[0])]
    numbers = range(len(ranges))
    first, end = zip(*ranges, strict=True)
    return list(_threads(len(ranges)).map(call, numbers, first, end))


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="kernel")
