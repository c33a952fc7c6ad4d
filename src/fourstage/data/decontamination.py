"""Texts that training must not hold: questions of an evaluation, prompts of reinforcement learning.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): a document is contaminated when it
shares 13 words in a row with a reference, case, spacing and punctuation apart; a reference with
fewer words counts as a whole, from 8 words on. Two points differ:

- In scripts without spaces a character counts as 2/3 of a word: 20 characters in a row, and 12 of
  a shorter reference.
- GPT-3 spares n-grams that occur in more than 10 training documents, as common phrases. That would
  spare a benchmark that is copied often enough; here n-grams are spared that occur in more than 10
  different references: the wording of the instruction they share, not what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.data.deduplication.words import WORD, Words

# Shortest reference that counts as a whole, in words.
LEAST_WORDS = 8
# References that share an n-gram from which on it is no one's own.
_COMMON = 10
# Punctuation within words: dropped or taken for a space by whoever copied the reference.
_WITHIN_WORDS = re.compile(r"(?<=\w)[^\w\s](?=\w)")
_AFTER_WORDS = re.compile(r"[\W_]+\Z")


@dataclass(frozen=True)
class Hit:
    """A document that holds words of references.

    Attributes:
        references: where each of these stands, in order.
        words: the first n-gram that is shared, as the document has it.
        start, end: of it, in characters of the document.
        share: of the document's words that lie in shared n-grams.
    """

    references: tuple[str, ...]
    words: str
    start: int
    end: int
    share: float

    @property
    def where(self) -> str:
        """The first of the references."""
        return self.references[0]


class Contamination:
    """What documents must not hold. It can be pickled, and is the same wherever it was made.

    Args:
        references: where each stands, as "file, line 3", and its text. One that repeats another
            is taken for it.
        ngram: words in a row that show contamination.

    Attributes:
        names: where each distinct reference stands.
        too_short: how many of them have fewer words than can show anything.
    """

    def __init__(self, references: Iterable[tuple[str, str]], ngram: int = 13):
        self.ngram = ngram
        self.least = min(LEAST_WORDS, ngram)
        self.names, words, whose = _readings(references)
        reach = words.reach[words.offsets]
        sizes = np.diff(reach)
        is_long = sizes >= ngram * WORD
        is_short = ~is_long & (sizes >= self.least * WORD)
        self.too_short = len(self.names) - len(np.unique(whose[is_long | is_short]))
        starts, ends = _windows(words, ngram)
        reading = _text_of(words, starts)
        self._long = _Table.of(words.runs(starts, ends), whose[reading], _COMMON)
        starts, ends = words.offsets[:-1][is_short], words.offsets[1:][is_short]
        self._short = _Table.of(words.runs(starts, ends), whose[is_short])
        # A short reference is looked for, by its length, where its first words are found.
        anchors = words.runs(starts, _window_ends(words, starts, self.least))
        self._anchors = _Table.of(anchors, ends - starts)

    def find(self, text: str) -> Hit | None:
        """What a document holds of the references, if anything."""
        return self.find_each([text])[0]

    def find_each(self, texts: Sequence[str], words: Words | None = None) -> list[Hit | None]:
        """What each document holds of the references.

        Args:
            words: of the texts, where they are at hand.
        """
        words = words or Words.of(texts)
        found = np.concatenate([self._found_long(words), self._found_short(words)])
        hits: list[Hit | None] = [None] * len(texts)
        if not len(found):
            return hits
        found = found[np.lexsort(found.T[::-1])]
        whose = _text_of(words, found[:, 0])
        edges = np.flatnonzero(np.diff(whose, prepend=-1, append=-1))
        for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            text = int(whose[first])
            hits[text] = self._hit(texts[text], text, words, found[first:last])
        return hits

    def _found_long(self, words: Words) -> np.ndarray:
        """[h, 3]: from which word to which, and the number of the reference."""
        starts, ends = _windows(words, self.ngram)
        at, references = self._long.look_up(words.runs(starts, ends))
        return np.stack([starts[at], ends[at], references], axis=1)

    def _found_short(self, words: Words) -> np.ndarray:
        """As `_found_long`, of references that are shorter than the n-gram."""
        if not len(self._short.hashes):
            return np.zeros((0, 3), np.int64)
        starts, ends = _windows(words, self.least)
        at, lengths = self._anchors.look_up(words.runs(starts, ends))
        starts, ends = starts[at], starts[at] + lengths
        within = ends <= words.offsets[_text_of(words, starts) + 1]
        starts, ends = starts[within], ends[within]
        at, references = self._short.look_up(words.runs(starts, ends))
        return np.stack([starts[at], ends[at], references], axis=1)

    def _hit(self, text: str, number: int, words: Words, found: np.ndarray) -> Hit:
        """The hit of one text, from rows of `_found_long` in order."""
        first, last = words.offsets[number : number + 2].tolist()
        covered = np.zeros(last - first + 1, np.int64)
        np.add.at(covered, found[:, 0] - first, 1)
        np.add.at(covered, found[:, 1] - first, -1)
        start, end = found[0, :2].tolist()
        begin = int(words.places[start])
        stop = int(words.places[end]) if end < last else len(text)
        shared = _AFTER_WORDS.sub("", text[begin:stop])
        return Hit(
            references=tuple(self.names[i] for i in dict.fromkeys(found[:, 2].tolist())),
            words=shared,
            start=begin,
            end=begin + len(shared),
            share=float((np.cumsum(covered[:-1]) > 0).mean()),
        )


def _readings(references: Iterable[tuple[str, str]]) -> tuple[list[str], Words, np.ndarray]:
    """The references as whoever copied them may have written them.

    Punctuation within words ("well-known", "1,000") is kept, dropped or made a space.

    Returns:
        Names of the distinct references, words of all readings, and which one each is of.
    """
    rows = list(references)
    words = Words.of([text for _, text in rows])
    wholes = words.runs(words.offsets[:-1], words.offsets[1:])
    firsts = np.sort(np.unique(wholes, return_index=True)[1]).tolist()
    names, texts, whose = [], [], []
    for number, (name, text) in enumerate(rows[first] for first in firsts):
        readings = (text, _WITHIN_WORDS.sub("", text), _WITHIN_WORDS.sub(" ", text))
        names.append(name)
        for reading in dict.fromkeys(readings):
            texts.append(reading)
            whose.append(number)
    return names, Words.of(texts), np.array(whose, np.int64)


def _text_of(words: Words, places: np.ndarray) -> np.ndarray:
    """Which text each word is of."""
    return np.searchsorted(words.offsets, places, "right") - 1


def _windows(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """From which word to which the runs of `size` words are that lie within a text, [m] each."""
    starts = np.arange(len(words.hashes))
    ends = _window_ends(words, starts, size)
    inside = ends <= np.repeat(words.offsets[1:], words.counts)
    return starts[inside], ends[inside]


def _window_ends(words: Words, starts: np.ndarray, size: int) -> np.ndarray:
    """[m] where the shortest run of `size` words ends that begins at each of the words."""
    if not words.is_character.any():
        return starts + size
    reach = words.reach
    return np.searchsorted(reach, reach[starts] + size * WORD)


@dataclass(frozen=True)
class _Table:
    """Values by 64-bit hashes, several by one.

    Attributes:
        hashes, values: [k] ascending by both.
        may_hold: by the first bits of a hash, whether it may be there: what rules out nearly all
            that are not, without a search.
    """

    hashes: np.ndarray
    values: np.ndarray
    may_hold: np.ndarray

    @classmethod
    def of(cls, hashes: np.ndarray, values: np.ndarray, most: int | None = None) -> _Table:
        """The distinct pairs, without the hashes that have more than `most` values."""
        order = np.lexsort((values, hashes))
        hashes, values = hashes[order], values[order]
        distinct = np.ones(len(hashes), bool)
        distinct[1:] = (hashes[1:] != hashes[:-1]) | (values[1:] != values[:-1])
        hashes, values = hashes[distinct], values[distinct]
        if most is not None:
            _, groups, counts = np.unique(hashes, return_inverse=True, return_counts=True)
            rare = counts[groups] <= most
            hashes, values = hashes[rare], values[rare]
        # 16 places for each hash, and no more than 16 MB.
        bits = min(max(len(hashes).bit_length() + 4, 10), 24)
        may_hold = np.zeros(1 << bits, bool)
        may_hold[hashes >> np.uint64(64 - bits)] = True
        return cls(hashes, values, may_hold)

    def look_up(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the hashes are in the table, once for each value, and the values."""
        shift = np.uint64(65 - len(self.may_hold).bit_length())
        at = np.flatnonzero(self.may_hold[hashes >> shift])
        low = np.searchsorted(self.hashes, hashes[at], "left")
        counts = np.searchsorted(self.hashes, hashes[at], "right") - low
        first = np.repeat(low - np.cumsum(counts) + counts, counts)
        return np.repeat(at, counts), self.values[first + np.arange(counts.sum())]
