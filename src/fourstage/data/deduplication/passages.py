"""Passages and lines that stand in several documents: found by their hashes, and cut out.

A passage begins with a sentence and is the fewest whole sentences that hold a number of words: the
sentence spans of C4 (Raffel et al. 2020, section 2.2) with the length of Lee et al. (2022), who
remove what is repeated for 50 tokens. One begins at every sentence, so a long copy is covered by
many; what may be left of it is its end, shorter than a passage. Short sentences and lines, as in
verse and dialogue, are no passages by themselves.

A line is one by itself, for what sites put on each page. Lines of code, too, stand in many
documents: whoever cuts lines does not do so in code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.data.deduplication.sentences import Sentences
from fourstage.data.deduplication.words import WORD, Words

# A shorter line is a speaker's name, a heading, an exclamation.
LEAST_LINE_WORDS = 3
# Hashes of lines are told from those of passages.
_LINE = np.uint64(0x6C62272E07BB0142)
# Occurrences that are sorted at once.
_PARTITION = 1 << 23


@dataclass(frozen=True)
class Spans:
    """Passages and lines of some texts, in the order of the texts.

    Attributes:
        documents: [m] int64, which text each is of.
        bounds: [m, 2] int64, from which character of it to which.
        hashes: [m] uint64, of its words.
        is_line: [m] whether it is a line, not a passage.
    """

    documents: np.ndarray
    bounds: np.ndarray
    hashes: np.ndarray
    is_line: np.ndarray


def spans(texts: Sequence[str], least_words: int = 50, words: Words | None = None) -> Spans:
    """The passages and the lines of each text.

    Args:
        least_words: of a passage; a character of a script without spaces counts as 2/3 of a word.
        words: of the texts, where they are at hand.
    """
    words = words or Words.of(texts)
    sentences = Sentences.of(texts, words)
    found = [_passages(sentences, words, least_words), _lines(sentences, words)]
    first, last, hashes = (np.concatenate(column) for column in zip(*found, strict=True))
    is_line = np.arange(len(first)) >= len(found[0][0])
    order = np.argsort(sentences.documents[first], kind="stable")
    first, last = first[order], last[order]
    bounds = np.stack([sentences.starts[first], sentences.ends[last]], axis=1)
    return Spans(sentences.documents[first], bounds, hashes[order], is_line[order])


def _passages(
    sentences: Sentences, words: Words, least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last sentence of each passage of `least` words, and its hash; each [m]."""
    reach = words.reach[sentences.offsets]
    first = np.flatnonzero(np.diff(sentences.offsets))
    # The sentence at whose end enough words are reached, and the last one of the text.
    last = np.searchsorted(reach, reach[first] + least * WORD) - 1
    final = np.searchsorted(sentences.documents, sentences.documents[first], "right") - 1
    first, last = first[last <= final], last[last <= final]
    return first, last, sentences.hashes(words, first, last)


def _lines(sentences: Sentences, words: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last sentence of each line with enough words, and its hash; each [m]."""
    last = np.flatnonzero(sentences.ends_line)
    first = np.concatenate([[0], last + 1])[: len(last)]
    counts = sentences.offsets[last + 1] - sentences.offsets[first]
    first, last = first[counts >= LEAST_LINE_WORDS], last[counts >= LEAST_LINE_WORDS]
    return first, last, sentences.hashes(words, first, last) ^ _LINE


def repeated(hashes: np.ndarray, documents: np.ndarray, least_documents: int = 2) -> np.ndarray:
    """Which occurrences repeat an earlier one of something that enough documents hold.

    The first occurrence of all stays. The space of hashes is cut into parts that are sorted one
    after the other, so that beside the result some 300 MB are needed, however many there are.

    Args:
        hashes: [m] uint64, maybe a memory map: passages, or lines.
        documents: [m] which document each is of, ascending. Only of those that are kept: the first
            occurrence of what is cut elsewhere must not be lost with its document.
        least_documents: that hold it; 1 cuts repeats within a document, too.

    Returns:
        [m] bool.
    """
    repeats = np.zeros(len(hashes), bool)
    parts = -(-len(hashes) // _PARTITION)
    for part in range(parts):
        chosen = _in_part(hashes, part, parts)
        chosen = chosen[np.argsort(hashes[chosen], kind="stable")]
        names, whose = hashes[chosen], documents[chosen]
        begins = np.concatenate([[True], names[1:] != names[:-1]])
        other = begins | np.concatenate([[True], whose[1:] != whose[:-1]])
        holders = np.add.reduceat(other, np.flatnonzero(begins), dtype=np.int64)
        enough = holders[np.cumsum(begins) - 1] >= least_documents
        repeats[chosen] = enough & ~begins
    return repeats


def _in_part(hashes: np.ndarray, part: int, parts: int) -> np.ndarray:
    """Indices of the hashes that are `part` modulo `parts`, ascending."""
    found = [
        at + np.flatnonzero(hashes[at : at + _PARTITION] % np.uint64(parts) == part)
        for at in range(0, len(hashes), _PARTITION)
    ]
    return np.concatenate(found)


def without(text: str, cuts: Iterable[Sequence[int]]) -> str:
    """The text without what lies between the bounds of each cut, which may overlap.

    Where it was cut, a paragraph, a line or a word still ends where one did; the rest of the text
    is as it was.
    """
    kept, at = "", 0
    for start, end in _merged(text, cuts):
        left, cut = text[at:start], text[start:end]
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
        body = left.rstrip()
        before = left[len(body) :] + cut[: len(cut) - len(cut.lstrip())]
        after = cut[len(cut.rstrip()) :] + text[end:at]
        kept += body
        if kept and at < len(text):
            kept += _joint(before, after)
    return kept + text[at:]


def _merged(text: str, cuts: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Cuts in order, those that touch or have only white space between them as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((start, end) for start, end in cuts if start < end):
        if merged and not text[merged[-1][1] : start].strip():
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _joint(before: str, after: str) -> str:
    """What stands where something was cut, from the white space before and after it."""
    line_ends = max(before.count("\n"), after.count("\n"))
    if line_ends:
        return "\n" * min(line_ends, 2)
    return " " if before or after else ""
