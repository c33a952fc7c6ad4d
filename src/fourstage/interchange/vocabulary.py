"""A model for another vocabulary: which rows of its tables are kept, and where others come from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourstage.errors import InputError
from fourstage.model.transformer import Transformer
from fourstage.randomness import generator

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

Pieces = Sequence[Sequence[int]]

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
# Special tokens with one meaning, whatever they are called.
_ROLES = (
    "end_of_text",
    "start_of_text",
    "user",
    "assistant",
    "system",
    "end_of_turn",
    "reward",
    "pad",
)


def with_vocabulary(model: Transformer, vocab_size: int, seed: int = 0) -> Transformer:
    """A copy of `model` with rows for `vocab_size` tokens; the model itself if it has as many.

    Old tokens keep their ids; for the others see `with_rows`.
    """
    rows = model.config.vocab_size
    if vocab_size <= rows:
        return model
    return with_rows(model, [[i] if i < rows else [] for i in range(vocab_size)], seed)


def with_tokenizer(
    model: Transformer, old: Tokenizer, tokenizer: Tokenizer, seed: int = 0
) -> tuple[Transformer, str]:
    """A copy of `model`, made with the tokenizer `old`, for another one.

    Returns:
        the model, and how many tokens were kept, made from pieces and made anew, in words.
    """
    pieces = pieces_of(tokenizer, old, model.config.vocab_size)
    kinds = Counter(min(len(each), 2) for each in pieces)
    said = (
        f"vocabulary changed from {model.config.vocab_size:,} to {len(pieces):,} tokens: "
        f"{kinds[1]:,} have a token of the old one, {kinds[2]:,} are the mean of their pieces, "
        f"{kinds[0]:,} the mean of all"
    )
    return with_rows(model, pieces, seed), said


def pieces_of(tokenizer: Tokenizer, old: Tokenizer, rows: int) -> list[list[int]]:
    """For each token of `tokenizer`, the tokens of `old` that say the same.

    A token of the same name is the same one; a special token of another name is that of the same
    role. Any other is its text as `old` writes it. Those that say nothing are empty: special tokens
    whose role `old` lacks, and bytes that it cannot write.

    Args:
        rows: tokens that the old model knows; `old` may have more, added when it was opened.
    """
    same_kind = old.is_byte_level == tokenizer.is_byte_level
    roles = {getattr(tokenizer, role): getattr(old, role) for role in reversed(_ROLES)}
    specials, old_specials = tokenizer.special_ids, old.special_ids
    pieces: list[list[int]] = []
    for token in range(tokenizer.vocab_size):
        name = tokenizer.backend.id_to_token(token)
        special = token in specials
        twin = None if name is None else old.backend.token_to_id(name)
        if name is None:
            found = []
        elif twin is not None and special == (twin in old_specials) and (same_kind or special):
            found = [twin]
        elif special:
            found = [roles[token]] if token in roles else []
        else:
            found = _written(tokenizer.decode_bytes([token]), old)
        pieces.append([piece for piece in found if piece < rows])
    return pieces


def _written(data: bytes, old: Tokenizer) -> list[int]:
    """The tokens of `old` for a piece of text, without the space that some put in front of it."""
    try:
        ids = old.encode_bytes(data)
        if old.decode_bytes(ids) != b" " + data:
            return ids
        if data.startswith(b" ") and len(data) > 1:
            return old.encode_bytes(data[1:])
        return ids[1:] if old.decode_bytes(ids[:1]) == b" " else ids
    except InputError:
        return []


def with_rows(model: Transformer, pieces: Pieces, seed: int = 0) -> Transformer:
    """A copy of `model` whose token i has the mean of the old rows `pieces[i]`.

    A token that is a row of old ones then begins where the model would have read them, on average.
    One without pieces gets the mean of all and a hundredth of their spread in noise: not yet
    trained, it then neither dominates the softmax nor is one with another such token (Hewitt,
    2021). Embeddings and head change alike; the noise is a function of `seed`.
    """
    config = dataclasses.replace(model.config, vocab_size=len(pieces))
    changed = Transformer(config, model.head)
    weights = dict(model.state_dict())
    for name in _TABLES:
        if name in weights:
            weights[name] = _rows(weights[name], pieces, seed, name)
    changed.load_state_dict(weights)
    changed.reward_mean, changed.reward_std = model.reward_mean, model.reward_std
    return changed.to(model.cos.device)


def _rows(table: Tensor, pieces: Pieces, seed: int, name: str) -> Tensor:
    """[old tokens, width] -> [tokens, width]."""
    counts = torch.tensor([len(each) for each in pieces])
    rows = table.new_empty(len(pieces), table.shape[1])
    flat = torch.tensor([piece for each in pieces for piece in each], dtype=torch.long)
    owner = torch.repeat_interleave(torch.arange(len(pieces)), counts)
    alone = counts[owner] == 1
    rows[owner[alone]] = table[flat[alone]]
    several = (counts > 1).nonzero().squeeze(1)
    place = torch.zeros_like(counts)
    place[several] = torch.arange(len(several))
    sums = table.new_zeros(len(several), table.shape[1])
    sums.index_add_(0, place[owner[~alone]].to(table.device), table[flat[~alone]])
    rows[several] = sums / counts[several, None].to(table.device)
    empty = (counts == 0).nonzero().squeeze(1)
    drawn = generator(seed, "vocabulary", name)
    noise = torch.randn(len(empty), table.shape[1], generator=drawn).to(table)
    rows[empty] = table.mean(dim=0) + 0.01 * table.std(dim=0) * noise
    return rows
