"""How a token is drawn from the logits: temperature, truncations, and one uniform a position.

A draw is the inverse of the cumulative distribution at a uniform number that depends on the
request's seed and the position alone. So a request gives the same text in any batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fourstage.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """What a request asks for.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: draw among the k most likely tokens; 0 is off.
        top_p: draw among the fewest tokens that hold this much probability; 1 is off.
        min_p: draw among tokens at least this likely relative to the most likely; 0 is off.
        max_new_tokens: where a completion ends that draws no stop token.
        stop_ids: tokens that end a completion; the one drawn is kept in it.
        seed: with the same seed the same request gives the same completion.

    Raises:
        InputError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 64
    stop_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = {
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1 (off)"),
            "min_p": (0 <= self.min_p < 1, "0 (off) or more and below 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
        }
        faults = [
            f"{name}={getattr(self, name)} is out of range: write {words}"
            for name, (holds, words) in wanted.items()
            if not holds
        ]
        if faults:
            raise InputError(*faults)


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Uniform numbers in [0, 1) for positions 0 .. count - 1 of each seed, [seeds, count] float32.

    SplitMix64 (Steele et al., 2014) of a counter: no stream is kept, any position can be asked for.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        start = _mixed(np.array([seed & (2**64 - 1) for seed in seeds], dtype=np.uint64) + step)
        counter = np.arange(1, count + 1, dtype=np.uint64) * step
        bits = _mixed(start[:, None] + counter[None, :])
    # 24 bits are what a float32 below 1 can hold: the largest is 1 - 2^-24, never 1.
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Drawer:
    """Draws one token a row for requests that may each ask for something else."""

    def __init__(self, samplings: Sequence[Sampling], device: torch.device | str = "cpu"):
        def column(name: str, dtype: torch.dtype) -> Tensor:
            numbers = [getattr(sampling, name) for sampling in samplings]
            return torch.tensor(numbers, dtype=dtype, device=device)[:, None]

        asked = column("temperature", torch.float32)
        self.greedy = asked[:, 0] == 0
        self.temperature = torch.where(asked == 0, 1.0, asked)
        self.top_k = column("top_k", torch.long)
        self.top_p = column("top_p", torch.float32)
        self.min_p = column("min_p", torch.float32)
        self.all_greedy = all(sampling.temperature == 0 for sampling in samplings)
        self.any_greedy = any(sampling.temperature == 0 for sampling in samplings)
        self.plain = all(sampling.temperature in (0, 1) for sampling in samplings)
        self.sorts = any(sampling.top_k or sampling.top_p < 1 for sampling in samplings)
        self.has_floor = any(sampling.min_p for sampling in samplings)

    def at(self, requests: Tensor) -> Drawer:
        """For a batch whose row i is what request `requests[i]` of these asks for."""
        other = copy.copy(self)
        for name in ("greedy", "temperature", "top_k", "top_p", "min_p"):
            setattr(other, name, getattr(self, name)[requests])
        return other

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, vocab], [batch] -> tokens [batch] and their log-probabilities [batch].

        The log-probability is that of the whole distribution at the temperature (1 for greedy
        rows), before any truncation: what a trainer computes from the same logits.
        """
        logits = logits.float()
        probabilities = torch.softmax(logits if self.plain else logits / self.temperature, dim=-1)
        if self.all_greedy:
            chosen = logits.argmax(dim=-1, keepdim=True)
        else:
            chosen = invert(self.truncated(probabilities), uniform)
            if self.any_greedy:
                best = logits.argmax(dim=-1, keepdim=True)
                chosen = torch.where(self.greedy[:, None], best, chosen)
        return chosen[:, 0], probabilities.gather(-1, chosen)[:, 0].log()

    def truncated(self, probabilities: Tensor) -> Tensor:
        """Sets to zero what top-k, top-p (of what top-k leaves) and min-p take away."""
        if self.sorts:
            probabilities = probabilities * self._nucleus(probabilities)
        if self.has_floor:
            floor = self.min_p * probabilities.amax(dim=-1, keepdim=True)
            probabilities = probabilities * (probabilities >= floor)
        return probabilities

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        """[batch, vocab] bool: the first tokens in falling order, up to k and up to the share p."""
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(ordered.shape[-1], device=ordered.device)
        ordered = ordered * ((self.top_k == 0) | (rank < self.top_k))
        before = ordered.cumsum(dim=-1) - ordered
        # The first token always stays; at p = 1 rounding must not cut the tail.
        inside = (self.top_p == 1) | (before < self.top_p * ordered.sum(dim=-1, keepdim=True))
        inside[:, 0] = True
        return torch.zeros_like(inside).scatter_(-1, order, inside & (ordered > 0))


def invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative sum passes `uniform` of its total: [batch, 1].

    Probabilities need not sum to 1; one of zero is never drawn, since the sum does not move there.
    """
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform[:, None] * total, right=True).clamp_(
        max=probabilities.shape[-1] - 1
    )
