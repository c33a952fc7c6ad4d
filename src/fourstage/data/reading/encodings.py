"""The encoding of a text: found with certainty, or refused by name."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator

from fourstage.data.reading.faults import Unreadable
from fourstage.data.reading.legacy import (
    FEWEST,
    SAMPLE,
    codec_of,
    declared,
    is_all,
    is_typographic,
    likeliest,
)
from fourstage.data.reading.unpacking import Source

_CHUNK = 1 << 20
_BEFORE = 64
# Codes that no text has, beside white space, escapes and the end mark of old systems.
CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\r\f\v\x1b\x1a\x08")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NOT_ASCII = re.compile(rb"[\x80-\xff\x1b]")
_ISO_2022_JP = re.compile(rb"\x1b\$[@AB]|\x1b\(J")
_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}charset=["']?\s*([\w-]+)|^\s*<\?xml[^>]{0,80}encoding=["']([\w-]+)""",
    re.IGNORECASE,
)


def by_mark(head: bytes) -> str | None:
    """The encoding that a byte order mark tells."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without its mark, told by where the zero bytes of ASCII lie."""
    # A few zero bytes among those of UTF-8 are no sign of another encoding.
    controls = len(head) - len(head.translate(None, CONTROLS))
    if 5 * controls < len(head) and not _utf8_counts(head)[1]:
        return None
    for encoding, size in (
        ("utf-32-le", 4),
        ("utf-32-be", 4),
        ("utf-16-le", 2),
        ("utf-16-be", 2),
    ):
        cut = head[: len(head) // size * size]
        if not cut or (size == 4 and cut.count(0) < len(cut) // 2):
            continue
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(cut)
        except UnicodeDecodeError:
            continue
        if text and all(_is_plain(c) for c in set(text)) and _is_one_script(text):
            return encoding
    return None


def _is_plain(character: str) -> bool:
    return character in "\t\n\r\f" or unicodedata.category(character) not in ("Cc", "Cn", "Co")


def _is_one_script(text: str) -> bool:
    """Whether the text has few blocks of 256 characters, or those of ideographs and Hangul.

    Bytes read in the wrong order scatter ASCII over as many blocks as there are letters.
    """
    blocks = {ord(c) >> 8 for c in text if not (0x3000 <= ord(c) < 0xD800 or ord(c) > 0xF900)}
    ascii_share = sum(c < "\x80" for c in text) / len(text)
    return len(blocks) <= 8 and (ascii_share > 0 or 0 not in text.encode("utf-16-le")[:64])


def detect(sample: bytes, name: str, *, opening: bytes = b"", is_json: bool = False) -> str:
    """The encoding of bytes that begin at or before a text's first that is not ASCII.

    UTF-8 with some bytes that are wrong is still UTF-8.

    Args:
        opening: the text's first bytes, where a page may tell its encoding.
        is_json: JSON is UTF-8 by its standard (RFC 8259): another encoding needs more evidence.

    Raises:
        Unreadable: it cannot be told with certainty.
        InputError: `chardet` is needed and not installed.
    """
    good, bad = _utf8_counts(sample)
    if not bad or good > bad:
        return "iso-2022-jp" if not good and _ISO_2022_JP.search(sample) else "utf-8"
    named = _DECLARED.search(opening or sample[:4096])
    if named and (found := declared(sample, (named[1] or named[2]).decode("ascii"))):
        return found
    if not is_json and is_typographic(sample):
        return "cp1252"
    found = likeliest(sample, name, FEWEST * (4 if is_json else 1))
    if found:
        return found
    if is_json:
        return "utf-8"
    raise Unreadable(name, _unsure(sample, good))


def _utf8_counts(sample: bytes) -> tuple[int, int]:
    """Characters beyond ASCII that are UTF-8, and bytes that are not."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(sample, is_all(sample))
    bad = text.count("\ufffd") - sample.count("\ufffd".encode())
    return sum(c > "\x7f" for c in text) - bad, bad


def _unsure(sample: bytes, good: int) -> str:
    if good:
        return "has some UTF-8 and as many bytes that are not: repair it, or leave it out"
    return (
        "is not UTF-8, and its encoding cannot be told with certainty; convert it, Chinese often "
        "with `iconv -f GB18030 -t UTF-8`, Western European with `iconv -f CP1252 -t UTF-8`"
    )


class Utf8(Source):
    """A stream of text as UTF-8, whatever it was; the encoding is told at the first non-ASCII byte.

    Bytes of a UTF-8 stream that are wrong are passed on; in any other encoding they are a fault.

    Args:
        source: the bytes as they are.
        encoding: where it is known from the start of the stream.

    Attributes:
        encoding: as found, "ascii" as long as nothing else was met.
    """

    def __init__(self, source: Source, name: str, encoding: str | None, *, is_json: bool = False):
        self.encoding = encoding or "ascii"
        super().__init__(self._converted(source, name, is_json))

    def _converted(self, source: Source, name: str, is_json: bool) -> Iterator[bytes]:
        if self.encoding == "utf-8-sig":
            source.read(len(codecs.BOM_UTF8))
        place, opening = 0, source.peek(4096)
        while self.encoding == "ascii" and (piece := source.read(_CHUNK)):
            if piece.isascii() and b"\x1b" not in piece:
                place += len(piece)
                yield piece
                continue
            # From shortly before, so that the word is seen too.
            first = _NOT_ASCII.search(piece)
            start = max(first.start() - _BEFORE, 0) if first else 0
            source.unread(piece[start:])
            place += start
            yield piece[:start]
            sample = source.peek(SAMPLE)
            self.encoding = detect(sample, name, opening=opening, is_json=is_json)
        if self.encoding in ("ascii", "utf-8", "utf-8-sig"):
            while piece := source.read(_CHUNK):
                yield piece
        else:
            yield from _transcoded(source, self.encoding, name, place)


def _transcoded(source: Source, encoding: str, name: str, place: int) -> Iterator[bytes]:
    for text in decoded(source, encoding, name, place):
        yield text.encode("utf-8")


def decoded(source: Source, encoding: str, name: str, place: int = 0) -> Iterator[str]:
    """The text of a stream, piece by piece.

    Args:
        place: bytes before the stream's beginning, for messages.

    Raises:
        Unreadable: bytes that are not of this encoding, with their place.
    """
    decoder = codecs.getincrementaldecoder(codec_of(encoding))()
    ended = False
    while not ended:
        piece = source.read(_CHUNK)
        ended = not piece
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(piece, final=ended)
        except UnicodeDecodeError as error:
            raise Unreadable(
                name,
                f"has bytes that are not {encoding} (byte {place - held + error.start}): repair "
                "or convert it, or leave it out",
            ) from error
        place += len(piece)
        if text:
            yield text
