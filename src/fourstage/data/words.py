"""Words of a text, in scripts with and without spaces, and the vocabulary of a corpus."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fourstage import files
from fourstage.errors import InputError

HAN = "han"
SPACED = "spaced"
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_HAN_RUN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# The most frequent words (about 150 of English, 100 characters of Chinese) carry no subject; of a
# small vocabulary, the first twentieth.
_COMMON = {SPACED: 150, HAN: 100}
_COMMON_SHARE = 0.05
# Two neighbouring characters are a word where they meet this many times as often as by chance.
_COHESION = 20.0
_LEAST_COUNT = 4


def script_of(text: str) -> str:
    """Whether most letters are Chinese characters, which stand without spaces."""
    letters = len(_LETTER.findall(text))
    return HAN if 2 * len(_HAN.findall(text)) > letters else SPACED


def words_of(text: str, script: str) -> list[str]:
    """Words in lower case; in Chinese, characters, with words of other scripts between them."""
    if script == SPACED:
        return [word.lower() for word in _WORD.findall(text)]
    words: list[str] = []
    for word in _WORD.findall(text):
        words += list(word) if _HAN.match(word) else [word.lower()]
    return words


@dataclass(frozen=True)
class Vocabulary:
    """What a corpus is written with.

    Attributes:
        known: every word (or character) of it.
        common: the most frequent ones.
        askable: words with a subject that occur often enough to be asked for.
    """

    known: frozenset[str]
    common: frozenset[str]
    askable: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        counts: dict[str, Counter[str]] = {SPACED: Counter(), HAN: Counter()}
        pairs: Counter[str] = Counter()
        for text in texts:
            script = script_of(text)
            counts[script].update(words_of(text, script))
            if script == HAN:
                for run in _HAN_RUN.findall(text):
                    pairs.update(run[i : i + 2] for i in range(len(run) - 1))
        common: set[str] = set()
        for script, most in _COMMON.items():
            most = min(most, int(_COMMON_SHARE * len(counts[script])))
            common.update(word for word, _ in counts[script].most_common(most))
        askable = {
            word
            for word, count in counts[SPACED].items()
            if count >= _LEAST_COUNT and len(word) > 3 and word not in common
        }
        askable |= _cohesive(pairs, counts[HAN])
        known = frozenset(counts[SPACED]) | frozenset(counts[HAN])
        return cls(known, frozenset(common), frozenset(askable))

    def askable_in(self, text: str, script: str) -> list[str]:
        """Askable words of a text, each once, in order."""
        if script == SPACED:
            found = [word for word in words_of(text, script) if word in self.askable]
        else:
            found = [
                text[i : i + 2] for i in range(len(text) - 1) if text[i : i + 2] in self.askable
            ]
        return list(dict.fromkeys(found))

    def subject(self, text: str, script: str) -> list[str]:
        """Words of a text that say what it is about: those that are not common."""
        words = words_of(text, script)
        shortest = 4 if script == SPACED else 1
        return list(dict.fromkeys(w for w in words if len(w) >= shortest and w not in self.common))


def _cohesive(pairs: Counter[str], characters: Counter[str]) -> set[str]:
    total = max(1, sum(characters.values()))
    return {
        pair
        for pair, count in pairs.items()
        if count >= _LEAST_COUNT
        and count * total >= _COHESION * characters[pair[0]] * characters[pair[1]]
    }


# Vocabularies that tasks name, by the hash of their words: tasks stay small, and a run can move.
_LOADED: dict[str, frozenset[str]] = {}


def remember(words: Iterable[str]) -> str:
    """Makes a vocabulary known to the checkers of this process; returns the key tasks carry."""
    known = frozenset(words)
    key = files.sha256_json(sorted(known))[:16]
    _LOADED[key] = known
    return key


def recall(key: str) -> frozenset[str]:
    """The words of a vocabulary that was remembered.

    Raises:
        InputError: it was not, in this process.
    """
    if key not in _LOADED:
        raise InputError(
            f"the vocabulary {key} of this task is not loaded: open the run's data first "
            "(fourstage.data.prepare.PreparedData.open)"
        )
    return _LOADED[key]


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
