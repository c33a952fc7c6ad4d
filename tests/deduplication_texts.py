"""Texts of made-up words, English-like and Chinese, and copies of which the truth is known."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

_SYLLABLES = "ba co di fu ga hel in jo ka lor men ni or pe qui ra sa tem u ver wa xi yo zen".split()
_CHARACTERS = [chr(0x4E00 + 7 * i) for i in range(1500)]


@dataclass
class Writer:
    """Writes texts whose words are distributed as Zipf has it."""

    language: str
    random: random.Random
    words: list[str] = field(init=False)
    weights: list[float] = field(init=False)

    def __post_init__(self) -> None:
        if self.language == "zh":
            self.words = list(_CHARACTERS)
        else:
            pairs = {
                a + b + c for a in _SYLLABLES for b in _SYLLABLES for c in ("", "n", "st", "la")
            }
            self.words = sorted(pairs)
        self.weights = [1 / (10 + rank) for rank in range(len(self.words))]

    def sentence(self, size: int) -> list[str]:
        return self.random.choices(self.words, self.weights, k=size)

    def sentences(self, size: int) -> list[list[str]]:
        """Sentences of 8 to 16 words, `size` words in all."""
        sentences: list[list[str]] = []
        while (left := size - sum(map(len, sentences))) > 0:
            sentences.append(self.sentence(min(left, self.random.randint(8, 16))))
        return sentences

    def written(self, sentences: list[list[str]]) -> str:
        if self.language == "zh":
            return "".join(
                "".join(words[:5]) + "，" + "".join(words[5:]) + "。" for words in sentences
            )
        return " ".join(" ".join(words).capitalize() + "." for words in sentences)

    def document(self, size: int) -> str:
        return self.written(self.sentences(size))


KINDS = ("exact", "one word", "reordered", "half copied", "translated")
SAME_DOCUMENT = ("exact", "one word", "reordered")


def copied(writer: Writer, kind: str, sentences: list[list[str]], other: Writer) -> str:
    """A copy of a document, changed as `kind` says; `other` writes in another language."""
    if kind == "translated":
        words = [
            [other.words[writer.words.index(w) % len(other.words)] for w in s] for s in sentences
        ]
        return other.written(words)
    if kind == "one word":
        sentences = [list(words) for words in sentences]
        chosen = writer.random.choice(sentences)
        chosen[writer.random.randrange(len(chosen))] = writer.words[-1]
    elif kind == "reordered":
        sentences = writer.random.sample(sentences, len(sentences))
    elif kind == "half copied":
        half = sentences[: len(sentences) // 2]
        size = sum(map(len, sentences[len(half) :]))
        sentences = half + writer.sentences(size)
    return writer.written(sentences)
