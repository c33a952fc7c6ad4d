"""Characters that two engines of regular expressions class alike, found by asking both."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Regex, pre_tokenizers

if TYPE_CHECKING:
    from fourstage.tokenizer.splitting import Twin

# Unassigned, private and surrogate code points: what one Unicode version does not know, the next
# one may class, and the two engines come with versions of their own.
_LEFT_OUT = ("Cn", "Co", "Cs")


@functools.cache
def stranger_to(twin: Twin) -> re.Pattern[str]:
    """Finds a character outside those on which both engines agree in every class of `twin`.

    The engines are asked as they are installed: tiktoken's, that of `tokenizers`, and the latter's
    digits where `twin` stands for those. About a second, once a process.
    """
    asked = "".join(
        c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in _LEFT_OUT
    )
    differ: set[str] = set()
    for characters in twin.classes:
        differ |= _by_tiktoken(characters, asked) ^ _by_tokenizers(characters, asked)
    if twin.by_rust:
        differ |= _by_tiktoken(r"\p{N}", asked) ^ _digits_of_tokenizers(asked)
    return outside(c for c in asked if c not in differ)


def outside(characters: Iterable[str]) -> re.Pattern[str]:
    """Finds a character that is none of these, which are in order of their code points."""
    ranges: list[list[int]] = []
    for code in map(ord, characters):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    if not ranges:
        return re.compile("(?s:.)")
    # A negated class finds those of the first plane in one table, 3 ns a character.
    return re.compile("[^" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges) + "]")


def _by_tiktoken(characters: str, asked: str) -> set[str]:
    """Those of a class: tiktoken leaves out what its pattern does not match."""
    import tiktoken

    single_bytes = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding(
        "class", pat_str=f"{characters}+", mergeable_ranks=single_bytes, special_tokens={}
    )
    return set(bytes(encoding.encode_ordinary(asked)).decode("utf-8"))


def _by_tokenizers(characters: str, asked: str) -> set[str]:
    removed = pre_tokenizers.Split(Regex(f"{characters}+"), "removed", invert=True)
    return _union(piece for piece, _ in removed.pre_tokenize_str(asked))


def _digits_of_tokenizers(asked: str) -> set[str]:
    """Those that are cut out from between two letters."""
    pieces = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("a".join(asked))
    return {piece for piece, _ in pieces if len(piece) == 1 and piece != "a"}


def _union(pieces: Iterable[str]) -> set[str]:
    return set("".join(pieces))
