"""Plain text in pieces, cut between paragraphs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A paragraph longer than so many blocks is cut between lines, words or anywhere.
_PATIENCE = 4
_BORDERS = ("\n", "。", " ")


@dataclass
class Piece:
    """Text that begins at a line (1-based) of the whole; the last piece ends it."""

    text: str
    first: int
    is_last: bool


def line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text with every line ended by `\\n`."""
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if text := decoder.decode("", final=True):
        yield text


def cut_text(pieces: Iterable[str], size: int) -> Iterator[Piece]:
    """A text in pieces of about `size` characters that together are the text.

    Where it is cut depends on the text alone, not on the pieces that it came in.
    """
    held, line = "", 1
    parts: list[str] = []
    length = 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length <= size:
            continue
        held = "".join(parts)
        while len(held) > size:
            end = _border(held, size)
            if end < 0:
                break
            text, held = held[:end], held[end:]
            yield Piece(text, line, is_last=False)
            line += text.count("\n")
        parts, length = [held], len(held)
    yield Piece("".join(parts), line, is_last=True)


def _border(text: str, size: int) -> int:
    """Where to cut: behind the last empty line of the first `size` characters, or the first later.

    -1 where more text is needed to tell.
    """
    place = text.rfind("\n\n", 0, size)
    if place < 0:
        place = text.find("\n\n", max(0, size - 2), _PATIENCE * size)
    if place >= 0:
        return place + 2
    if len(text) < _PATIENCE * size:
        return -1
    for mark in _BORDERS:
        place = text.rfind(mark, 0, size)
        if place >= 0:
            return place + len(mark)
    return size
