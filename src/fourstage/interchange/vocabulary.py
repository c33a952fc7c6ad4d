"""Rows for tokens that a model from elsewhere does not have, such as our turns and `<|reward|>`."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fourstage.model.transformer import Transformer
from fourstage.randomness import generator


def with_vocabulary(model: Transformer, vocab_size: int, seed: int = 0) -> Transformer:
    """A copy of `model` with rows for `vocab_size` tokens; the model itself if it has as many.

    A new row is the mean of the old ones and a hundredth of their spread in noise: a token not yet
    trained then neither dominates the softmax nor is one with another new token (Hewitt, 2021).
    """
    if vocab_size <= model.config.vocab_size:
        return model
    larger = Transformer(dataclasses.replace(model.config, vocab_size=vocab_size), model.head)
    weights = dict(model.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = _longer(weights[name], vocab_size, seed, name)
    larger.load_state_dict(weights)
    larger.reward_mean, larger.reward_std = model.reward_mean, model.reward_std
    return larger.to(model.cos.device)


def _longer(table: Tensor, rows: int, seed: int, name: str) -> Tensor:
    drawn = generator(seed, "vocabulary", name)
    noise = torch.randn(rows - len(table), table.shape[1], generator=drawn).to(table)
    return torch.cat([table, table.mean(dim=0) + 0.01 * table.std(dim=0) * noise])
