"""Documents: cut from text, stripped, each kept once, and held out by a hash of their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from fourstage.data.reading import RawFile, RawRow, read_rows, read_text
from fourstage.data.rows import understand
from fourstage.errors import InputError

# `auto` gathers paragraphs up to this many characters.
GATHERED = 2000
# Below this nothing can be learnt or measured.
LEAST_CHARACTERS = 2000
LEAST_DOCUMENTS = 4

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？；…])[”’」』）]*")


@dataclass
class Kept:
    """What reading kept and dropped, and why.

    Attributes:
        train, validation: documents, in reading order.
        counts: documents read, empty, duplicate, kept; characters and bytes.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def read_documents(raw: Iterable[RawFile], document: str, key: str | None) -> Iterator[str]:
    """Documents of text files (cut by `document`) and of rows (a row is a document).

    Raises:
        InputError: files or rows that cannot be read, or a `data.key` that no row has.
    """
    has_rows, has_key = False, False
    for file in raw:
        if not file.holds_rows:
            yield from cut(read_text(file), document)
            continue
        seen: list[bool] = []
        for row in understand(_noting(read_rows(file), key, seen), key):
            yield row.as_text()
        has_rows, has_key = has_rows or bool(seen), has_key or any(seen)
    if key is not None and has_rows and not has_key:
        raise InputError(f"data.key={key}: no row of the data has this key; leave it out")


def _noting(rows: Iterable[RawRow], key: str | None, seen: list[bool]) -> Iterator[RawRow]:
    for row in rows:
        seen.append(isinstance(row.value, dict) and key in row.value)
        yield row


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


def keep(documents: Iterable[str], share: float, where: str) -> Kept:
    """Strips documents, drops empty ones and exact duplicates, and holds a share out.

    Which are held out is decided by their content: those whose hash falls below `share`, or the
    one with the smallest hash where none does.

    Raises:
        InputError: too little text, or nothing left to train on or to hold out.
    """
    kept = Kept()
    counts = dict.fromkeys(("read", "empty", "duplicate", "train", "validation"), 0)
    seen: set[bytes] = set()
    texts: list[str] = []
    for text in documents:
        counts["read"] += 1
        text = text.strip()
        name = content_hash(text)
        if not text:
            counts["empty"] += 1
        elif name in seen:
            counts["duplicate"] += 1
        else:
            seen.add(name)
            texts.append(text)
    characters = sum(map(len, texts))
    if not texts:
        raise InputError(f"{where}: there is no text in it; give files with some text")
    if characters < LEAST_CHARACTERS or len(texts) < LEAST_DOCUMENTS:
        raise InputError(
            f"{where}: {len(texts)} document(s) of {characters} characters are too little to train "
            f"and measure on: give at least {LEAST_DOCUMENTS} documents and {LEAST_CHARACTERS} "
            "characters, or cut it smaller with data.document=paragraph or data.document=line"
        )
    kept.train, kept.validation = split(texts, share, where)
    counts |= {"train": len(kept.train), "validation": len(kept.validation)}
    counts |= {"characters": characters, "bytes": sum(len(t.encode()) for t in texts)}
    kept.counts = counts
    return kept


def split(texts: list[str], share: float, where: str) -> tuple[list[str], list[str]]:
    """Training and held-out texts, by hash.

    Raises:
        InputError: one of the two would be empty.
    """
    places = [place(text) for text in texts]
    # A hash below the share, and the smallest of all in any case.
    bound = max(share, min(places, default=0.0) * (1 + 1e-12))
    train = [text for text, at in zip(texts, places, strict=True) if at > bound]
    held_out = [text for text, at in zip(texts, places, strict=True) if at <= bound]
    if not train or not held_out:
        raise InputError(
            f"{where}: {len(texts)} item(s) with data.validation={share:g} leave nothing to "
            f"{'train on' if held_out else 'hold out'}: give more data or another share"
        )
    return train, held_out
