"""The second look at a file: its usable rows in numbers. Numbers are kept, rows are not."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import repeat
from typing import Any, Generic, TypeVar

import numpy as np

from fourstage.data.cleaning import count_pii, identify
from fourstage.data.decontamination import Contamination
from fourstage.data.deduplication import MinHasher, Words, near_duplicates
from fourstage.data.documents import content_hash
from fourstage.data.shapes import Row
from fourstage.reporting.doctor.lengths import is_over, token_counts
from fourstage.tokenizer import Tokenizer

# Documents of a file that are compared with each other for likeness, to the next block.
SIGNED = 20_000
# Documents of a file whose language is told.
LISTENED = 1_000
# Rows that hold a reference, listed a file; all are counted.
HITS = 1_000

Value = TypeVar("Value")


@dataclass(frozen=True)
class Tools:
    """What rows are measured with.

    Attributes:
        tokenizer: counts tokens; without it their number is an estimate.
        contamination: tells rows that hold a reference; None where there are no references.
        mapping: our names of keys to those of the rows.
        context: cells of a row of training, to tell what is longer.
        examples: rows kept of each file, to be shown.
        tells_languages: whether the library for that is installed.
    """

    tokenizer: Tokenizer | None = None
    contamination: Contamination | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    context: int | None = None
    examples: int = 1
    hasher: MinHasher = field(default_factory=MinHasher)
    tells_languages: bool = field(default_factory=lambda: find_spec("py3langid") is not None)


class Sample(Generic[Value]):
    """Every k-th of the values offered, where k doubles whenever more than `most` were kept."""

    def __init__(self, most: int):
        self.values: list[Value] = []
        self._most, self._step, self._offered = most, 1, 0

    def offer(self, make: Callable[[], Value]) -> None:
        """Keeps what `make` returns if it is this one's turn."""
        if self._offered % self._step == 0:
            self.values.append(make())
            if len(self.values) > self._most:
                self.values = self.values[::2]
                self._step *= 2
        self._offered += 1


@dataclass
class Measured:
    """The usable rows of a file in numbers.

    Attributes:
        tokens: [rows] of each; of a comparison of its longer side.
        over: rows that do not fit the context; 0 where none was given.
        hashes: [distinct] uint64 of the content, ascending.
        exact: rows that repeat an earlier one. near: rows among the first `signed` that are much
            like an earlier one. elsewhere: distinct rows that an earlier file has too.
        languages: of `listened` rows, spread evenly over the file.
        pii: kind of personal data -> how often it occurs.
        hits: rows that hold a reference: {line, member?, references, words}; `contaminated` in all.
        examples: rows that their content's hash chose.
    """

    tokens: np.ndarray
    hashes: np.ndarray
    over: int = 0
    exact: int = 0
    near: int = 0
    signed: int = 0
    elsewhere: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    listened: int = 0
    pii: Counter[str] = field(default_factory=Counter)
    contaminated: int = 0
    hits: list[dict[str, Any]] = field(default_factory=list)
    examples: list[Row] = field(default_factory=list)


class Measures:
    """Gathers what there is to say of the rows of one file."""

    def __init__(self, tools: Tools):
        self._tools = tools
        self._tokens, self._hashes = array("Q"), array("Q")
        self._signatures: list[np.ndarray] = []
        self._over = self._signed = 0
        self._languages: Sample[str] = Sample(LISTENED)
        self._pii: Counter[str] = Counter()
        self._contaminated = 0
        self._hits: list[dict[str, Any]] = []
        self._examples: list[tuple[int, Row]] = []

    def add(self, rows: Sequence[Row], lines: Sequence[int], member: str = "") -> None:
        """Measures some rows.

        Args:
            lines: of each row. member: the member of an archive that they are of.
        """
        texts = [said(row) for row in rows]
        hashes = [int.from_bytes(content_hash(text)[:8], "big") for text in texts]
        self._hashes.extend(hashes)
        tokens = token_counts(self._tools.tokenizer, rows)
        self._tokens.extend(tokens)
        if (context := self._tools.context) is not None:
            self._over += sum(map(is_over, rows, tokens, repeat(context)))
        for text in texts:
            if self._tools.tells_languages:
                self._languages.offer(lambda text=text: identify(text)[0])
            self._pii.update(count_pii(text))
        if self._tools.contamination is not None or self._signed < SIGNED:
            words = Words.of(texts)
            self._sign(texts, words)
            self._check(texts, words, lines, member)
        self._choose(rows, hashes)

    def _sign(self, texts: Sequence[str], words: Words) -> None:
        """Signs the texts, whole blocks of them, while fewer than `SIGNED` are."""
        if self._signed < SIGNED:
            self._signatures.append(self._tools.hasher.signatures(texts, words))
            self._signed += len(texts)

    def _check(self, texts: Sequence[str], words: Words, lines: Sequence[int], member: str) -> None:
        if self._tools.contamination is None:
            return
        for hit, line in zip(self._tools.contamination.find_each(texts, words), lines, strict=True):
            if hit is None:
                continue
            self._contaminated += 1
            if len(self._hits) < HITS:
                place = {"line": line, **({"member": member} if member else {})}
                held = {"references": list(hit.references), "words": hit.words}
                self._hits.append({**place, **held})

    def _choose(self, rows: Sequence[Row], hashes: Sequence[int]) -> None:
        """Keeps the rows with the smallest hashes: they do not change when rows are added."""
        kept = dict(self._examples)
        for key, row in zip(hashes, rows, strict=True):
            kept.setdefault(key, row)
        self._examples = sorted(kept.items(), key=lambda each: each[0])[: self._tools.examples]

    def finish(self) -> Measured:
        hashes = np.frombuffer(self._hashes, np.uint64)
        distinct = np.unique(hashes)
        return Measured(
            np.frombuffer(self._tokens, np.uint64).astype(np.int64),
            distinct,
            over=self._over,
            exact=len(hashes) - len(distinct),
            near=self._near(hashes[: self._signed]),
            signed=self._signed,
            languages=Counter(self._languages.values),
            listened=len(self._languages.values),
            pii=self._pii,
            contaminated=self._contaminated,
            hits=self._hits,
            examples=[row for _, row in self._examples],
        )

    def _near(self, hashes: np.ndarray) -> int:
        """Rows alike to an earlier one that are not equal to one."""
        if not len(hashes):
            return 0
        signatures, hasher = np.concatenate(self._signatures), self._tools.hasher
        first = near_duplicates(signatures, hasher.bands, hasher.threshold)
        is_first = np.zeros(len(hashes), bool)
        is_first[np.unique(hashes, return_index=True)[1]] = True
        return int(np.count_nonzero((first != np.arange(len(first))) & is_first))


def said(row: Row) -> str:
    """All that a row says, every answer of it once."""
    if row.kind == "text":
        return row.text
    turns = [message["content"] for message in row.messages or []]
    answers = (row.chosen, row.rejected, *row.responses)
    return "\n".join([*turns, *filter(None, answers)])


def count_elsewhere(measured: Sequence[Measured]) -> None:
    """Counts in each file the distinct rows that an earlier file has too."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *(each.hashes for each in measured)])
    whose = np.repeat(np.arange(len(measured)), [len(each.hashes) for each in measured])
    order = np.argsort(hashes, kind="stable")
    repeats = hashes[order][1:] == hashes[order][:-1]
    counts = np.bincount(whose[order][1:][repeats], minlength=len(measured))
    for each, count in zip(measured, counts.tolist(), strict=True):
        each.elsewhere = count
