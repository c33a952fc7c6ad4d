"""Randomness as a function of (seed, purpose, step): nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_ROUNDS = 4


def seed_for(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose; the same on every machine and Python version."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def python_random(seed: int, *purpose: str | int) -> random.Random:
    return random.Random(seed_for(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed_for(seed, *purpose)))


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator; streams drawn on the CPU are the same for every device."""
    import torch

    return torch.Generator().manual_seed(seed_for(seed, *purpose))


def permuted(index: int, size: int, seed: int) -> int:
    """Where a pseudo-random permutation of `range(size)` sends `index`, without listing it.

    A balanced Feistel network over the next even power of two, walked until the value falls inside
    the range (Black and Rogaway, *Ciphers with Arbitrary Finite Domains*, 2002).

    Raises:
        ValueError: `index` is not in `range(size)`.
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is outside a permutation of {size}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (seed_for(seed, turn, right) & mask)
        index = (left << half) | right
        if index < size:
            return index


def permutation(size: int, seed: int, *purpose: str | int) -> np.ndarray:
    """A whole pseudo-random permutation of `range(size)`, int64."""
    return numpy_generator(seed, "permutation", *purpose).permutation(size)
