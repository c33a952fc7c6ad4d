"""Pass 2: a verdict on every document, found over all of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.corpus.columns import Part
from fourstage.data.corpus.corpus import TRAIN, VALIDATION
from fourstage.data.corpus.likeness import clusters_of, repeats_of
from fourstage.data.corpus.settings import CorpusSettings
from fourstage.data.deduplication import first_of_equal
from fourstage.data.shapes import fits, misfit, settle

REFUSED, MISSHAPEN, DUPLICATE, NEAR, REMNANT = 2, 3, 4, 5, 6
_HASHES = 2.0**64
# A document of which less is left, in characters, teaches nothing.
LEAST_LEFT = 200


@dataclass
class Verdicts:
    """What became of each document.

    Attributes:
        of: [n] uint8: TRAIN, VALIDATION, or why it was dropped.
        firsts: [parts + 1] number of the first document of each part.
        same_as: [n] the earlier document that each repeats; itself where there is none.
        cut_documents, cuts: passages cut out: of which documents, and [m, 2] from and to where.
        bad: rows of another shape than their file's: {file, line, why}.
    """

    of: np.ndarray
    firsts: np.ndarray
    same_as: np.ndarray
    cut_documents: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    cuts: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    bad: list[dict[str, Any]] = field(default_factory=list)

    def count(self, verdict: int) -> int:
        return int(np.count_nonzero(self.of == verdict))


def majority(parts: Sequence[Part]) -> dict[str, str]:
    """The shape of most rows of each file."""
    shapes: dict[str, Counter[str]] = {}
    for part in parts:
        for key, count in part.notes.shapes.items():
            shape, _, file = key.partition("\t")
            shapes.setdefault(file, Counter())[shape] += count
    return {file: settle(counts) for file, counts in shapes.items()}


def judge(
    parts: Sequence[Part], settings: CorpusSettings, refused: Mapping[str, str], aside: Path
) -> Verdicts:
    """Verdicts on the documents of all parts.

    Of several equal documents the first in reading order stays. Documents that are near duplicates
    lie on one side of the split, whether or not they are removed, so that nothing that is held out
    has a near duplicate in training.

    Args:
        refused: files of which nothing is used.
        aside: a folder for what is too large for the memory.
    """
    firsts = np.cumsum([0, *(len(part.column("lines")) for part in parts)])
    count = int(firsts[-1])
    verdicts = Verdicts(np.full(count, TRAIN, np.uint8), firsts, np.arange(count))
    _refuse(verdicts, parts, refused)
    hashes = gathered(parts, "hashes", (0, 2), np.uint64)
    alive = np.flatnonzero(verdicts.of == TRAIN)
    equal = alive[first_of_equal(hashes[alive])]
    verdicts.same_as[alive] = equal
    if settings.exact:
        verdicts.of[alive[equal != alive]] = DUPLICATE
    first = alive[equal == alive]
    near = clusters_of(parts, firsts, first, settings.near, aside)
    verdicts.same_as[first] = near
    # What repeats a document repeats what that is near to.
    verdicts.same_as[alive] = verdicts.same_as[verdicts.same_as[alive]]
    if settings.near:
        repeats = verdicts.same_as != np.arange(count)
        verdicts.of[repeats & (verdicts.of == TRAIN)] = NEAR
    if settings.passages or settings.lines:
        _cut(verdicts, parts, settings)
    held_out = hashes[verdicts.same_as, 0] / _HASHES
    _hold_out(verdicts, held_out, settings.validation)
    return verdicts


def gathered(parts: Sequence[Part], name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A column of all parts; of `shape` where there are none."""
    return np.concatenate([np.zeros(shape, dtype), *(part.column(name) for part in parts)])


def is_refused(file: str, refused: Mapping[str, str]) -> bool:
    """Whether nothing of a file is used: it, or the archive that it is in, is refused."""
    return any(name in refused for name in accumulate(file.split("/"), "{}/{}".format))


def _refuse(verdicts: Verdicts, parts: Sequence[Part], refused: Mapping[str, str]) -> None:
    """Drops documents of refused files, and rows of another shape than most of their file."""
    shapes = majority(parts)
    for number, part in enumerate(parts):
        labels, lines = part.column("labels"), part.column("lines")
        of = verdicts.of[verdicts.firsts[number] : verdicts.firsts[number + 1]]
        for label, (file, shape, _) in enumerate(part.names):
            # The members of an archive go with it.
            if is_refused(file, refused):
                of[labels == label] = REFUSED
            elif not fits(shape, shapes.get(file, shape)):
                of[labels == label] = MISSHAPEN
                why = misfit(shape, shapes[file])
                verdicts.bad += [
                    {"file": file, "line": int(line), "why": why} for line in lines[labels == label]
                ]


def _cut(verdicts: Verdicts, parts: Sequence[Part], settings: CorpusSettings) -> None:
    """Cuts out what an earlier document has, too; drops documents of which little is left."""
    verdicts.cut_documents, verdicts.cuts = repeats_of(
        parts, verdicts.firsts, verdicts.of == TRAIN, bool(settings.passages), settings.lines
    )
    left = characters_left(parts, verdicts)
    touched = np.unique(verdicts.cut_documents)
    verdicts.of[touched[left[touched] < LEAST_LEFT]] = REMNANT


def characters_left(parts: Sequence[Part], verdicts: Verdicts) -> np.ndarray:
    """[n] characters of each document without what was cut out of it."""
    left = gathered(parts, "characters", (0,), np.int64)
    for document, cuts in _grouped(verdicts.cut_documents, verdicts.cuts):
        left[document] -= _length_of(cuts)
    return left


def _grouped(documents: np.ndarray, cuts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each document with its cuts, [k, 2]."""
    begins = np.flatnonzero(np.diff(documents, prepend=-1))
    for first, last in pairwise([*begins.tolist(), len(documents)]):
        yield int(documents[first]), cuts[first:last]


def _length_of(cuts: np.ndarray) -> int:
    """Characters that lie within any of the cuts, [k, 2], which may overlap."""
    ordered = cuts[np.argsort(cuts[:, 0], kind="stable")]
    reached = np.maximum.accumulate(ordered[:, 1])
    before = np.concatenate([[0], reached[:-1]])
    return int(np.maximum(0, ordered[:, 1] - np.maximum(ordered[:, 0], before)).sum())


def _hold_out(verdicts: Verdicts, places: np.ndarray, share: float) -> None:
    """Holds out documents whose place in [0, 1) is below `share`, or the lowest of all."""
    kept = verdicts.of == TRAIN
    if not kept.any():
        return
    bound = max(share, float(places[kept].min()) * (1 + 1e-12))
    verdicts.of[kept & (places <= bound)] = VALIDATION
