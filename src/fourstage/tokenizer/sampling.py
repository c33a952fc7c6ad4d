"""As much text as merges can be counted on in bounded memory, spread over all that there is."""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Iterable, Iterator

# UTF-8 that is held while more text may come.
MOST_BYTES = 100_000_000
# UTF-8 of different pieces: the trainer needs 60 to 100 bytes for each. English has fewer in 100 MB
# of text, Chinese, whose clauses are pieces that hardly ever come again, in 15 MB.
MOST_PIECE_BYTES = 8_000_000
# A text is a fair part of a sample only if it is small beside it.
_LONGEST = 1_000_000
# The trainer's time grows with the square of a piece: 80,000 letters in a row take it 4 seconds.
_LONG_RUN = 1024
_signs = re.compile(r"(?:[^\w\s]|_)+")
_piece = re.compile(r"[^\r\n\w]?[^\W\d_]+|[^\w\s]+")


def training_sample(
    texts: Iterable[str],
    most_bytes: int = MOST_BYTES,
    most_piece_bytes: int = MOST_PIECE_BYTES,
    longest_piece: int | None = None,
) -> Iterator[str]:
    """All of the texts if they are few, else some drawn from them all with equal chances.

    Letters, signs or white space in long rows, such as base64 and DNA, are cut into several texts.
    Which are drawn is a function of their order and lengths. Memory: `most_bytes` and the pieces.

    Args:
        most_bytes: of text, in UTF-8.
        most_piece_bytes: of different words, clauses and rows of signs, in UTF-8.
        longest_piece: characters after which a piece is cut anyhow.
    """
    seen: set[str] = set()
    room = most_piece_bytes
    drawn = _drawn(texts, most_bytes)
    while drawn and room > 0:
        text = drawn.pop().decode("utf-8")
        for piece in _piece.findall(text):
            for part in _cut(piece, longest_piece):
                if part not in seen:
                    seen.add(part)
                    room -= len(part.encode("utf-8"))
        yield from _without_long_runs(text)


def _drawn(texts: Iterable[str], most_bytes: int) -> list[bytes]:
    """Texts whose random keys are the smallest, the smallest of all last."""
    dice = random.Random(0)
    held: list[tuple[float, int, bytes]] = []
    size, highest = 0, 1.0
    for number, text in enumerate(_slices(texts)):
        key = dice.random()
        if key >= highest:
            continue
        data = text.encode("utf-8", "replace")
        heapq.heappush(held, (-key, number, data))
        size += len(data)
        while size > most_bytes and len(held) > 1:
            key, _, dropped = heapq.heappop(held)
            highest = -key
            size -= len(dropped)
    return [data for _, _, data in sorted(held)]


def _slices(texts: Iterable[str]) -> Iterator[str]:
    """The texts, very long ones cut after a line where there is one."""
    for text in texts:
        while len(text) > _LONGEST:
            end = text.rfind("\n", 0, _LONGEST) + 1 or _LONGEST
            yield text[:end]
            text = text[end:]
        yield text


def _without_long_runs(text: str) -> Iterator[str]:
    """The text, cut behind each block of it that is all letters, all signs or all white space."""
    start = 0
    for at in range(0, len(text) - _LONG_RUN, _LONG_RUN):
        end = at + _LONG_RUN
        block = text[at:end]
        if block.isalpha() or block.isspace() or _signs.fullmatch(block):
            yield text[start:end]
            start = end
    yield text[start:]


def _cut(piece: str, longest: int | None) -> Iterable[str]:
    if longest is None or len(piece) <= longest or piece.isascii():
        return (piece,)
    return (piece[start : start + longest] for start in range(0, len(piece), longest))
