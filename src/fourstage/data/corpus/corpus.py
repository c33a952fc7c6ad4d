"""The prepared text of a run: documents that were kept, for training and held out, on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fourstage import files
from fourstage.data.corpus.columns import Part
from fourstage.data.deduplication import without

TRAIN, VALIDATION = 0, 1
SPLITS = {"train": TRAIN, "validation": VALIDATION}


@dataclass(frozen=True)
class Chosen:
    """The documents of one part that belong to a split.

    Attributes:
        texts: of each. sources: [n] which source each is of.
    """

    texts: list[str]
    sources: np.ndarray


class Corpus:
    """Documents in reading order, read part by part: no more than a part is in memory.

    Attributes:
        names: of the sources.
        characters, documents: split -> how many.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        told = files.read_json(folder / "corpus.json")
        self.names: list[str] = told["sources"]
        self.characters: dict[str, int] = told["characters"]
        self.documents: dict[str, int] = told["documents"]
        self.parts: int = told["parts"]

    def part(self, number: int) -> Part:
        return Part(self.folder / "parts" / f"{number:06d}.safetensors")

    @cached_property
    def _judged(self) -> tuple[np.ndarray, np.ndarray]:
        """The verdict of every document, and the first document of every part."""
        return (
            np.load(self.folder / "verdicts.npy", mmap_mode="r", allow_pickle=False),
            np.load(self.folder / "firsts.npy", allow_pickle=False),
        )

    @cached_property
    def _cuts(self) -> tuple[np.ndarray, np.ndarray]:
        """Documents of which passages were cut, ascending, and [m, 2] from and to where."""
        return (
            np.load(self.folder / "cut_documents.npy", mmap_mode="r", allow_pickle=False),
            np.load(self.folder / "cuts.npy", mmap_mode="r", allow_pickle=False),
        )

    def chosen(self, number: int, split: str) -> Chosen:
        """The documents of part `number` that belong to `split`."""
        verdicts, firsts = self._judged
        first, last = int(firsts[number]), int(firsts[number + 1])
        chosen = np.flatnonzero(verdicts[first:last] == SPLITS[split])
        part = self.part(number)
        texts = list(part.texts(chosen))
        documents, cuts = self._cuts
        for place, text in enumerate(texts):
            low, high = np.searchsorted(documents, first + chosen[place] + np.array([0, 1]))
            if high > low:
                texts[place] = without(text, cuts[low:high].tolist())
        return Chosen(texts, part.column("sources")[chosen])

    def texts(self, split: str, most: int | None = None) -> Iterator[str]:
        """Texts of a split in reading order.

        Args:
            most: about so many characters, spread evenly over the whole; None is all.
        """
        every = 1 if most is None else max(1, -(-self.characters[split] // most))
        place = 0
        for number in range(self.parts):
            for text in self.chosen(number, split).texts:
                if place % every == 0:
                    yield text
                place += 1

    def samples(self, split: str, most: int) -> dict[str, list[str]]:
        """The first texts of each source in a split, about `most` characters of each."""
        found: dict[str, list[str]] = {name: [] for name in self.names}
        sizes = dict.fromkeys(self.names, 0)
        for number in range(self.parts):
            chosen = self.chosen(number, split)
            for text, source in zip(chosen.texts, chosen.sources.tolist(), strict=True):
                name = self.names[source]
                if sizes[name] < most:
                    found[name].append(text)
                    sizes[name] += len(text)
            if all(size >= most for size in sizes.values()):
                break
        return {name: texts for name, texts in found.items() if texts}
