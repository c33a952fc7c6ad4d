"""Where the sentences and the lines of texts end."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.data.deduplication.words import Words, code_points

_LATIN_END, _CHINESE_END, _CLOSES, _SPACE, _LINE_END = range(1, 6)
_CHARACTERS = {
    _LATIN_END: ".!?…",
    _CHINESE_END: "。！？；",
    _CLOSES: "\"'”’)]」』）】》",
    _SPACE: " \t\r\u00a0\u3000",
    _LINE_END: "\n",
}
_MOST_CLOSING = 3


@dataclass(frozen=True)
class Sentences:
    """The sentences of n texts, end to end; a line end ends one, too.

    Attributes:
        documents: [s] which text each is of.
        starts, ends: [s] from and to which of its characters.
        offsets: [s + 1] how many words there are before each.
        ends_line: [s] whether a line, or the text, ends with it.
    """

    documents: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    ends_line: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str], words: Words) -> Sentences:
        """The sentences of texts, of which these are the words."""
        codes, begins = code_points(texts)
        finals = np.append(begins, len(codes))[1:] - 1
        is_end, is_final = np.zeros((2, len(codes) + 1), bool)
        is_end[_sentence_ends(codes)] = is_end[finals] = is_final[finals] = True
        ends = np.flatnonzero(is_end)
        documents = np.searchsorted(begins, ends, "right") - 1
        # The space between two texts belongs to neither.
        starts = np.maximum(np.concatenate([[0], ends[:-1]]), begins[documents])
        places = words.places + np.repeat(begins, words.counts)
        offsets = np.searchsorted(places, np.concatenate([starts, ends[-1:]]))
        ends_line = is_final[ends] | (codes[ends - 1] == ord("\n"))
        return cls(
            documents, starts - begins[documents], ends - begins[documents], offsets, ends_line
        )

    def hashes(self, words: Words, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """[m] uint64, of the words from sentence `first` (ascending) to `last`, both [m]."""
        return words.runs(self.offsets[first], self.offsets[last + 1])


def _sentence_ends(codes: np.ndarray) -> np.ndarray:
    """Where sentences and lines end: the indices after their last characters.

    A mark of the Latin script ends one where white space follows, those of Chinese anywhere;
    closing quotes and brackets belong to it.
    """
    marks = _marks()[codes]
    after = np.flatnonzero((marks == _LATIN_END) | (marks == _CHINESE_END)) + 1
    is_latin = marks[after - 1] == _LATIN_END
    # The last code is a space, which closes nothing: this stays within the array.
    for _ in range(_MOST_CLOSING):
        after += marks[after] == _CLOSES
    after = after[~is_latin | (marks[after] >= _SPACE)]
    return np.concatenate([after, np.flatnonzero(marks == _LINE_END) + 1])


@functools.cache
def _marks() -> np.ndarray:
    """[code points] uint8, what each does for sentences."""
    marks = np.zeros(sys.maxunicode + 1, np.uint8)
    for mark, characters in _CHARACTERS.items():
        marks[[*map(ord, characters)]] = mark
    return marks
