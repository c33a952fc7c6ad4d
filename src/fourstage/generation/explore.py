"""The distribution over the next token at each position, and what is drawn from it.

A GPT is autoregressive: it gives the probability of every next token. It is generative: one is
drawn. Both are seen here, greedy beside drawn.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Drawer, Sampling
from fourstage.model.layout import Layout


@dataclass(frozen=True)
class Candidate:
    """A token with its probability at the temperature, and whether the truncations leave it in."""

    token: int
    probability: float
    allowed: bool


@dataclass(frozen=True)
class Position:
    """The distribution after what stands before one position.

    Attributes:
        index: place of the token that is drawn, counted from the start of the prompt.
        top: the most likely tokens, the first is the greedy one.
        drawn: the token that was drawn.
        rank: its rank, 1 for the most likely.
        entropy: of the whole distribution at the temperature, in bits.
    """

    index: int
    top: tuple[Candidate, ...]
    drawn: Candidate
    rank: int
    entropy: float


def explore(
    engine: Engine, prompt: list[int], sampling: Sampling, top: int = 8
) -> tuple[list[Position], list[int]]:
    """Draws `sampling.max_new_tokens` tokens and looks at the distribution before each.

    The tokens drawn are those of `Engine.generate` with the same request.

    Returns:
        The positions along the drawn text, and the greedy continuation of the same prompt.

    Raises:
        InputError: the prompt is empty, longer than the context, or holds an unknown token.
    """
    drawn = engine.generate([prompt], sampling)[0].tokens
    greedy = engine.generate([prompt], dataclasses.replace(sampling, temperature=0.0))[0].tokens
    return _positions(engine, prompt, drawn, sampling, top), greedy


@torch.inference_mode()
def _positions(
    engine: Engine, prompt: list[int], drawn: list[int], sampling: Sampling, top: int
) -> list[Position]:
    model = engine.model
    device = model.cos.device
    read = torch.tensor([*prompt, *drawn[:-1]], device=device)
    hidden = model(read, Layout([len(read)], device))[len(prompt) - 1 :]
    drawer = Drawer([sampling], device)
    logits = model.logits(hidden).float() / drawer.temperature
    whole = torch.softmax(logits, dim=-1)
    left = torch.cat([drawer.truncated(row[None]) for row in whole])
    positions = []
    for offset, token in enumerate(drawn):
        row = whole[offset]

        def candidate(token: int, row=row, left=left[offset]) -> Candidate:
            return Candidate(token, float(row[token]), bool(left[token] > 0))

        likely = row.topk(min(top, len(row))).indices.tolist()
        positions.append(
            Position(
                index=len(prompt) + offset,
                top=tuple(candidate(each) for each in likely),
                drawn=candidate(token),
                rank=int((row > row[token]).sum()) + 1,
                entropy=float(torch.special.entr(row).sum()) / 0.6931471805599453,
            )
        )
    return positions
