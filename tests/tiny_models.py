"""Tiny random models and a tokenizer of single letters for the tests of generation and folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fourstage.model.config import ModelConfig
from fourstage.model.families import FAMILIES, sized
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer


def tiny_model(head: str = "language", seed: int = 0, **changes) -> Transformer:
    """A model whose every weight matters: no projection is zero, no norm is one."""
    shape = {
        "vocab_size": 60,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "mlp_width": 48,
        "context": 48,
    }
    model = Transformer(ModelConfig(**(shape | changes)), head)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=draw)
            weight.copy_(1 + 0.2 * noise if weight.dim() == 1 else 0.3 * noise)
    return model


def tiny_family(family: str, **changes) -> Transformer:
    """A tiny model with a family's options: windows of 4 cells, 4 experts, 2 of them a token."""
    options = dict(FAMILIES[family])
    if "window" in options:
        options["window"] = 4
    if "experts" in options:
        options |= {"experts": 4, "experts_per_token": 2}
    if options.get("full_every"):
        options |= {"layers": 3, "full_every": 2}
    return tiny_model(**(sized(options, options.get("layers", 2)) | changes))


def logits_of(model: Transformer, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab] by a plain forward pass."""
    with torch.no_grad():
        return model.logits(model(torch.tensor(tokens), Layout([len(tokens)])))


class Letters:
    """The tokenizer's interface with a token a letter; ids 0 .. 3 are special."""

    pad, end_of_text, end_of_turn = 0, 1, 2
    stop_ids = (1, 2)
    letters = "abcdefghijklmnopqrstuvwxyz .!?"

    def encode(self, text: str) -> list[int]:
        return [4 + self.letters.index(letter) for letter in text]

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        known = {4 + place: letter for place, letter in enumerate(self.letters)}
        special = "" if skip_special else "*"
        return "".join(known.get(token, special) for token in ids)

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        ids: list[int] = []
        for message in messages:
            ids += [3, *self.encode(message["content"]), 2]
        return [*ids, 3]

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(json.dumps({"letters": self.letters}))
