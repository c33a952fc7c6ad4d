"""Documents of a corpus as rows of tokens; what a worker imports, so nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourstage.data.corpus import Corpus
from fourstage.tokenizer import Tokenizer

SPLITS = ("validation", "train")


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens end to end, as they come from a worker.

    Attributes:
        tokens: [sum of lengths] ids. lengths: [n] tokens of each row. sources: [n] uint16.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    sources: np.ndarray


class Encoder:
    """Encodes the parts of a corpus, each split for itself."""

    def __init__(self, corpus: Path, tokenizer: Path):
        self.corpus, self.tokenizer = Corpus(corpus), Tokenizer.load(tokenizer)

    def __call__(self, number: int) -> dict[str, TokenRows]:
        """Rows of one part: every document between its start and its end."""
        return {split: self._rows(number, split) for split in SPLITS}

    def _rows(self, number: int, split: str) -> TokenRows:
        chosen = self.corpus.chosen(number, split)
        ids, lengths = self.tokenizer.encode_batch_flat(chosen.texts)
        ends = np.cumsum(lengths)
        # One place in front of each document and one behind it.
        starts = np.repeat(self.tokenizer.start_of_text, len(lengths))
        stops = np.repeat(self.tokenizer.end_of_text, len(lengths))
        places = np.stack([ends - lengths, ends], 1).reshape(-1)
        marks = np.stack([starts, stops], 1).reshape(-1)
        tokens = np.insert(ids.astype(np.uint32), places, marks.astype(np.uint32))
        return TokenRows(tokens, lengths + 2, chosen.sources)
