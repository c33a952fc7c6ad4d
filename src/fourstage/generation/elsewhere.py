"""Engines elsewhere: they get weights, and answer in ids."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from fourstage.errors import MachineError
from fourstage.generation.engine import Completion
from fourstage.generation.sampling import Sampling
from fourstage.model.transformer import Transformer

# Log-probabilities of other programs are rounded; beyond this above 0 they are none.
_ROUNDING = 1e-2


class Elsewhere(ABC):
    """Draws as `generation.engine.Engine` does, with weights of its own that it takes before."""

    @abstractmethod
    def start(self, say: Callable[[str], None]) -> None:
        """Gets ready, and tells a person what is used.

        Raises:
            InputError: it is not there, or does not answer as it should.
        """

    @abstractmethod
    def take(self, model: Transformer) -> None:
        """Goes on with the weights of `model`.

        Raises:
            MachineError: they did not arrive.
        """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """As `Engine.generate`.

        Raises:
            MachineError: it did not answer, or with something else than completions.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of what it holds."""


def last_line(error: Exception) -> str:
    """What another library's error ends with, which is where it says what was wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def completion(
    tokens: Sequence[int], logprobs: Sequence[float], sampling: Sampling, who: str
) -> Completion:
    """What another engine answered, as the engine here would have it: up to its first stop token.

    Raises:
        MachineError: it is empty, longer than was asked for, or log-probabilities are missing or
            are none.
    """
    if not tokens or len(tokens) != len(logprobs):
        raise MachineError(
            f"{who} answered {len(tokens)} tokens with {len(logprobs)} log-probabilities: it has "
            "to give token ids and the log-probability of each"
        )
    if len(tokens) > sampling.max_new_tokens:
        raise MachineError(
            f"{who} answered {len(tokens)} tokens, and {sampling.max_new_tokens} were asked for"
        )
    wrong = [each for each in logprobs if not math.isfinite(each) or each > _ROUNDING]
    if wrong:
        raise MachineError(f"{who} answered {wrong[0]} as a log-probability")
    stops = [place for place, token in enumerate(tokens) if token in sampling.stop_ids]
    length = stops[0] + 1 if stops else len(tokens)
    if not stops and len(tokens) < sampling.max_new_tokens:
        raise MachineError(
            f"{who} ended an answer after {len(tokens)} of {sampling.max_new_tokens} tokens "
            "without a stop token: it has to keep the stop token it drew, and to have room for "
            "the whole answer"
        )
    return Completion(
        [int(each) for each in tokens[:length]],
        np.array(logprobs[:length], np.float32),
        "stop" if stops else "length",
    )
