"""Rows of token ids that all contenders of a comparison read, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourstage.randomness import numpy_generator
from fourstage.tokenizer import train_tokenizer
from peers.shapes import Shape

_HELD_OUT = 0.05


@dataclass(frozen=True)
class Rows:
    """Windows of an array of ids on disk; its last 5% are held out.

    Attributes:
        path: of the array.
    """

    path: Path
    shape: Shape

    def training(self, step: int) -> Tensor:
        """[rows, context + 1] of a step: a function of the step alone."""
        return self._windows(0.0, 1 - _HELD_OUT, "training", step)

    def held_out(self, batches: int = 4) -> list[Tensor]:
        return [self._windows(1 - _HELD_OUT, 1.0, "held out", n) for n in range(batches)]

    def _windows(self, first: float, last: float, purpose: str, number: int) -> Tensor:
        ids = np.load(self.path, mmap_mode="r")
        time = self.shape.context + 1
        low, high = int(first * len(ids)), int(last * len(ids)) - time
        starts = numpy_generator(0, purpose, number).integers(low, high, self.shape.rows)
        return torch.from_numpy(np.stack([ids[start : start + time] for start in starts]))


def write_ids(path: Path, texts: Sequence[str], vocab_size: int) -> None:
    """Encodes the texts with a vocabulary trained on them, end to end.

    Raises:
        SystemExit: they are too few to cut rows from.
    """
    tokenizer = train_tokenizer(texts, vocab_size, exact=False)
    ids, _ = tokenizer.encode_batch_flat(list(texts))
    if len(ids) < 100_000:
        raise SystemExit(f"{len(ids):,} tokens are too few: give some megabytes of text")
    np.save(path, np.asarray(ids, np.int64))
