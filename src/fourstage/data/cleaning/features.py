"""A document and what the filters ask of it; each is computed once, when first asked."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fourstage.data.cleaning.structure import looks_like_code, looks_like_table

# Scripts that put no space between words: Han, kana, Thai, Lao, Burmese, Khmer. A character of
# them is a word here.
UNSPACED = (
    "\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff\u0e01-\u0eff\u1000-\u1049\u1050-\u109f\u1780-\u17d3"
)
# Combining marks and joiners, which `\w` leaves out, so that it would cut Hindi, Arabic with
# vowel signs or decomposed accents to pieces.
_MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06ed\u0900-\u0963\u0970-\u0dff\u0f18-\u0fbc\u200c\u200d"
)
# A word goes on over marks within "U.S.", "e.g.", "example.com", "3.14", "10:30", "24/7", "IL-3"
# and an address on the web; not within "1939-1945" and "well-known".
_ON = (
    r"(?:\.(?:[a-z\d]\w*|(?<=\b[A-Z]\.)(?:[A-Za-z]\.)*|(?<=\.[a-z]\.))"
    r"|[,:/]\d+|://[^\s,]*[^\s,.;:!?)\]\"'”’]|-(?<=[^\W\d]-)\d+)*"
)
_TAIL = r"['’](?:s|re|ve|ll|d|m)\b|\.\.+|--+|==+|\*\*+|\S"
_WORD = re.compile(rf"\w+{_ON}|{_TAIL}")
_LETTERS = f"[^\\W{UNSPACED}]"
_ANY_WORD = re.compile(rf"[{UNSPACED}]|{_LETTERS}+(?:[{_MARKS}]+{_LETTERS}*)*{_ON}|{_TAIL}")
_NEEDS_ANY = re.compile(f"[{UNSPACED}{_MARKS}]")
# The apostrophe that is a letter keeps "n't" in one piece.
_NOT = " n\u02bct"
_UNSPACED = re.compile(f"[{UNSPACED}]")
_ALPHABETIC = re.compile("[A-Za-z\u00c0-\u024f\u0400-\u04ff\u1e00-\u1eff]")
_LETTER = re.compile(rf"[^\W\d_]|[{_MARKS}]")
_ALPHANUMERIC = re.compile(r"\w")


@dataclass(frozen=True)
class Tally:
    """How many words are no mere symbols, how many hold a letter, and characters of the former."""

    proper: int
    lettered: int
    characters: int


class Features:
    """A document as the filters see it.

    Args:
        text: with line ends of "\n".
        language: ISO 639-1, where it is known; "und" where it is not.

    Attributes:
        text, language: as given.
    """

    def __init__(self, text: str, language: str = "und"):
        self.text = text
        self.language = language

    def edited(self, text: str) -> Features:
        """The document with another text; what it is written in, code or prose, stays as it is."""
        other = Features(text, self.language)
        if "structure" in self.__dict__:
            other.structure = self.structure
        return other

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def words(self) -> list[str]:
        """Words, numbers and single symbols in order, about as spaCy's English rules cut them.

        "doesn't" is "does" and "n't", "U.S." and "3.14" are one word, "well-known" is three. Where
        words are not separated by spaces, each character is one.
        """
        find = _WORD.findall if self._is_simple else _ANY_WORD.findall
        return find(self.text.replace("n't", _NOT).replace("n’t", _NOT))

    @cached_property
    def _is_simple(self) -> bool:
        """Whether there are no combining marks and no scripts without spaces."""
        return self.text.isascii() or _NEEDS_ANY.search(self.text) is None

    @cached_property
    def _numbered(self) -> tuple[dict[str, int], np.ndarray]:
        """Distinct words with their numbers, and [words] int64: which of them each word is."""
        number: defaultdict[str, int] = defaultdict(itertools.count().__next__)
        ids = np.fromiter(map(number.__getitem__, self.words), np.int64, len(self.words))
        return number, ids

    @property
    def ids(self) -> np.ndarray:
        """[words] int64: which distinct word each is, from 0 in the order of first occurrence."""
        return self._numbered[1]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Distinct words in the order of their first occurrence, and how often each occurs."""
        number, ids = self._numbered
        return dict(zip(number, np.bincount(ids).tolist(), strict=True))

    @cached_property
    def lengths(self) -> np.ndarray:
        """[words] int64: characters of each."""
        number, ids = self._numbered
        return np.fromiter(map(len, number), np.int64, len(number))[ids]

    @cached_property
    def tally(self) -> Tally:
        proper = lettered = characters = 0
        for word, count in self.counts.items():
            if word.isalpha():
                lettered += count
            elif not _ALPHANUMERIC.search(word):
                continue
            elif _LETTER.search(word):
                lettered += count
            proper += count
            characters += count * len(word)
        return Tally(proper, lettered, characters)

    @cached_property
    def is_unspaced(self) -> bool:
        """Whether most words are single characters of a script without spaces."""
        if self._is_simple:
            return False
        return 2 * len(_UNSPACED.findall(self.text)) > self.tally.proper

    @cached_property
    def is_latin(self) -> bool:
        """Whether most letters are Latin or Cyrillic, the scripts of the known function words."""
        if self.text.isascii():
            return True
        return 2 * len(_ALPHABETIC.findall(self.text)) > self.tally.characters

    @cached_property
    def structure(self) -> str:
        """ "code" or "table", which rules for prose do not fit; empty for prose."""
        if looks_like_code(self.text):
            return "code"
        return "table" if looks_like_table(self.text) else ""
