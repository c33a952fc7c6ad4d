"""Encoding by tiktoken's engine over the same merges, where its ids are proven equal.

tiktoken joins the two neighbours whose joined bytes have the lowest rank; `tokenizers` joins the
two of the earliest merge. Let a vocabulary hold the 256 bytes, let its merges stand in the order of
the tokens they make, each token made of earlier ones, and let every token's own bytes encode to
that token alone. Then both join the same neighbours in the same order:

1. Merging rank by rank, from the left, neighbouring tokens a and b of a text never depended on
   what is around them: the bytes of a and b alone, merged up to the same rank, give [a, b].
2. Suppose a + b is the token t. Its own bytes give [t] in the end, and [a, b] now, so t is still to
   come and nothing but joining a and b makes it. So (a, b) is the merge that makes t from its own
   bytes, and what tiktoken would join at t's rank `tokenizers` joins at that merge.
3. What a join makes has a higher rank than what it joined, so no rank comes back: the lowest rank
   at hand, from the left, is the next one to both. By induction every state is the same.

By 2 a merge that makes t from another pair (Llama 3's file lists them all) never happens, and by
the condition a piece that is a whole token is that token at once, which tiktoken and
`ignore_merges` take for granted. The condition is checked for every token when a vocabulary is
first used so, the cuts into pieces by `splitting`, and the characters by `agreement`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models

from fourstage.tokenizer.agreement import stranger_to
from fourstage.tokenizer.bytelevel import BYTE_TO_CHARACTER, CHARACTER_TO_BYTE
from fourstage.tokenizer.splitting import twin_of

if TYPE_CHECKING:
    from tiktoken import Encoding

# tiktoken's engine gives up on white space of a million characters; so much is nobody's text.
_LONG_SPACE = 100_000
_long_space = re.compile(rf"(?<!\s)\s{{{_LONG_SPACE}}}")
# Between texts that are encoded in one go: a code point that never becomes a character, so that no
# text that is `known` holds it.
_BORDER = "\U0010ffff"


@dataclass(frozen=True)
class FastEncoder:
    """tiktoken's encoding of a vocabulary, and which texts it may be given.

    Attributes:
        encoding: whose ranks are the ids, with a special token between texts.
        stranger: finds a character that the two engines may not class alike.
        added: contents of added tokens that typed text can become.
        composed: whether text is brought to NFC first; such text is known if it is in NFC.
    """

    encoding: Encoding
    stranger: re.Pattern[str]
    added: tuple[str, ...] = ()
    composed: bool = False

    def knows(self, text: str) -> bool:
        """Whether `encode` gives the ids that `tokenizers` gives."""
        if not text.isascii():
            if self.stranger.search(text):
                return False
            if self.composed and not unicodedata.is_normalized("NFC", text):
                return False
        if len(text) >= _LONG_SPACE and _long_space.search(text):
            return False
        return not any(token in text for token in self.added)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts that it `knows`, one after another, and how many each has.

        Nearly all of it lets other threads run.
        """
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        # One call: short texts would otherwise cost more in calls than in merges.
        ids = self.encoding.encode_to_numpy(
            _BORDER.join(texts), allowed_special={_BORDER}, disallowed_special=()
        )
        borders = np.flatnonzero(ids == self.encoding.max_token_value)
        return np.delete(ids, borders), np.diff(borders, prepend=-1, append=len(ids)) - 1


def fast_encoder(backend: Backend) -> FastEncoder | None:
    """The faster encoder of a vocabulary; None where equality is not proven, or without tiktoken.

    Takes about a second for 100,000 tokens.
    """
    try:
        import tiktoken
    except ImportError:
        return None
    described = json.loads(backend.to_str())
    twin = twin_of(described["pre_tokenizer"])
    normalizer = (described["normalizer"] or {}).get("type")
    if twin is None or normalizer not in (None, "NFC"):
        return None
    ranks = proven_ranks(described["model"])
    stranger = stranger_to(twin) if ranks else None
    if ranks is None or stranger is None or not _ascii_is_known(stranger):
        return None
    encoding = tiktoken.Encoding(
        "fourstage",
        pat_str=twin.pattern,
        mergeable_ranks=ranks,
        special_tokens={_BORDER: max(ranks.values()) + 1},
    )
    added = tuple(
        content
        for token in described["added_tokens"]
        if not token["special"]
        for content in {token["content"], unicodedata.normalize("NFC", token["content"])}
    )
    return FastEncoder(encoding, stranger, added, normalizer == "NFC")


def _ascii_is_known(stranger: re.Pattern[str]) -> bool:
    return stranger.search("".join(map(chr, range(128)))) is None


def proven_ranks(model: dict[str, Any]) -> dict[bytes, int] | None:
    """Bytes -> id of every token that merges make, the ids in the order of the merges.

    Args:
        model: the part of a tokenizer.json.

    Returns:
        None where the conditions of this module do not hold.
    """
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model.get(option) for option in options):
        return None
    vocab = model["vocab"]
    if any(character not in vocab for character in BYTE_TO_CHARACTER):
        return None
    made = {character: vocab[character] for character in BYTE_TO_CHARACTER}
    usable, newest, last = [], "", -1
    for left, right in _pairs(model["merges"]):
        token = left + right
        if token != newest:
            # Its merges stand together, and after those of all tokens with smaller ids.
            if (newest and newest not in made) or vocab.get(token, -1) <= last or token in made:
                return None
            newest, last = token, vocab[token]
        if left in made and right in made:
            usable.append((left, right))
            made[token] = last
    if (newest and newest not in made) or len(set(made.values())) < len(made):
        return None
    if (model.get("ignore_merges") and len(made) < len(vocab)) or not _all_alone(made, usable):
        return None
    return {bytes(CHARACTER_TO_BYTE[c] for c in token): i for token, i in made.items()}


def _pairs(merges: list[Any]) -> list[tuple[str, str]]:
    """Merges as pairs, however the file writes them."""
    return [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in merges]


def _all_alone(made: dict[str, int], merges: list[tuple[str, str]]) -> bool:
    """Whether the bytes of every token encode to that token alone."""
    bare = models.BPE(vocab=made, merges=merges, cache_capacity=0)
    return all([piece.id for piece in bare.tokenize(token)] == [i] for token, i in made.items())
