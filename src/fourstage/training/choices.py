"""The ways to compute a step, from the fastest to the one that takes the least memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fourstage.data.batch import Batch
from fourstage.planning.memory import Recompute

# Halvings of the micro-batch before blocks are computed twice, which takes a third more time.
_HALVINGS = 3


@dataclass(frozen=True)
class Choice:
    """A way to compute a step: cells of a micro-batch, and whether blocks are computed twice."""

    micro_batch_tokens: int
    recompute: Recompute = "off"

    def takes_less_than(self, other: Choice) -> bool:
        if self.recompute == other.recompute:
            return self.micro_batch_tokens < other.micro_batch_tokens
        return self.recompute == "block"

    def __str__(self) -> str:
        again = ", blocks computed again in the backward pass" if self.recompute == "block" else ""
        return f"micro-batches of {self.micro_batch_tokens:,} tokens{again}"


def choices(asked: int, longest: int, recompute: str = "auto") -> list[Choice]:
    """The ways from the fastest to the one that takes least: halves, then blocks computed again.

    Args:
        asked: cells of the largest micro-batch.
        longest: cells of the largest document (or group of them), which is not cut.
        recompute: auto, off or block.
    """
    sizes = [asked]
    while sizes[-1] > longest:
        sizes.append(max(longest, sizes[-1] // 2))
    kept = [Choice(size) for size in sizes]
    again = [Choice(size, "block") for size in sizes]
    if recompute == "auto":
        return kept[: _HALVINGS + 1] + again
    return kept if recompute == "off" else again


def filled(batch: Batch, cells: int) -> Batch:
    """A micro-batch of at most `cells` cells from the batch's documents, the largest ones first.

    They are repeated where the batch has too few; one that is larger than `cells` stands alone.
    """
    groups = sorted(batch.groups(), key=lambda group: -sum(batch.lengths[i] for i in group))
    chosen: list[list[int]] = []
    held = 0
    while True:
        added = False
        for group in groups:
            size = sum(batch.lengths[i] for i in group)
            if not chosen or held + size <= cells:
                chosen.append(group)
                held, added = held + size, True
        if not added:
            break
    found = batch.select(index for group in chosen for index in group)
    if "group" in batch.documents:
        numbers = [number for number, group in enumerate(chosen) for _ in group]
        found.documents["group"] = torch.tensor(numbers)
    return found


def longest(batch: Batch) -> int:
    """Cells of the largest document or group of them."""
    return max(sum(batch.lengths[i] for i in group) for group in batch.groups())
