"""Documents: cut from text, and known by a hash of their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

# `auto` gathers paragraphs up to this many characters.
GATHERED = 2000
# Below this nothing can be learnt or measured.
LEAST_CHARACTERS = 2000
LEAST_DOCUMENTS = 4

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？；…])[”’」』）]*")


@dataclass(frozen=True)
class Kept:
    """Documents to make instructions from, in reading order."""

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)


def cut(text: str, document: str) -> Iterator[str]:
    """A text as documents: the whole file, its paragraphs, its lines, or paragraphs gathered.

    Nothing but white space at the edges is lost.

    Args:
        text: with `\\n` line ends.
        document: "auto", "file", "paragraph" or "line".
    """
    if document == "file":
        yield text
    elif document == "line":
        yield from text.split("\n")
    elif document == "paragraph":
        yield from _BLANK_LINES.split(text)
    else:
        yield from gather(_BLANK_LINES.split(text), "\n\n")


def gather(parts: Iterable[str], joint: str, limit: int = GATHERED) -> Iterator[str]:
    """Neighbouring parts joined while they stay within `limit` characters.

    A part beyond the limit is gathered from its lines, a line from its sentences, and a sentence
    is cut.
    """
    held: list[str] = []
    size = 0
    for part in parts:
        if held and size + len(joint) + len(part) > limit:
            yield joint.join(held)
            held, size = [], 0
        if len(part) > limit:
            yield from _smaller(part, limit)
            continue
        size += len(part) + (len(joint) if held else 0)
        held.append(part)
    if held:
        yield joint.join(held)


def _smaller(part: str, limit: int) -> Iterator[str]:
    if "\n" in part.strip():
        yield from gather(part.strip().split("\n"), "\n", limit)
        return
    ends = [match.end() for match in _SENTENCE_END.finditer(part)]
    bounds = [0, *(end for end in ends if end < len(part)), len(part)]
    sentences = [part[a:b] for a, b in pairwise(bounds) if b > a]
    if len(sentences) > 1:
        yield from gather(sentences, "", limit)
    else:
        yield from (part[at : at + limit] for at in range(0, len(part), limit))


def content_hash(text: str) -> bytes:
    """16 bytes that name a text by its content."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def place(text: str, purpose: str = "") -> float:
    """Where a hash puts a text in [0, 1): the same in every run, whatever else there is."""
    digest = hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8, person=purpose.encode()[:16]
    ).digest()
    return int.from_bytes(digest, "big") / 2**64
