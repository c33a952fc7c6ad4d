"""Batched generation with a key-value cache: rollouts, samples, `generate`, `chat`, serving.

Prompts of different length share a batch without padding their computation; rows that have
finished are given to requests that wait, and taken out when none does (`generation.running`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fourstage.errors import InputError, MachineError
from fourstage.generation.running import Draw, Request, RunningBatch
from fourstage.generation.sampling import Sampling
from fourstage.memory import is_out_of_memory, let_go
from fourstage.model.transformer import Transformer

# Most of the last-level cache of a desktop or of a slice of a server.
_CPU_CACHE_BYTES = 24 * 2**20
_FEWEST_ROWS = 32


@dataclass
class Completion:
    """What a request got.

    Attributes:
        tokens: the new tokens; the last is the stop token if one was drawn.
        logprobs: [tokens] log-probability of each under the whole distribution at the temperature
            (at 1 for greedy requests), in nats.
        finish: `stop` when a stop token was drawn, `length` when the room was used up.
    """

    tokens: list[int]
    logprobs: np.ndarray
    finish: Literal["stop", "length"]


class Engine:
    """Generates with `model`, at most `max_batch` requests at a time.

    The weights are read anew at each call, so the engine of a model in training stays valid.

    Attributes:
        max_batch: falls where memory runs out, to half of the requests that did not fit. What is
            drawn stays the same, within the rounding of products of other shapes.
    """

    def __init__(self, model: Transformer, max_batch: int = 256):
        self.model = model
        self.max_batch = max_batch

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in their order; `seeds` replace those of `sampling`.

        Raises:
            InputError: a prompt is empty, longer than the context, or holds an unknown token.
            MachineError: a single request does not fit the memory.
        """
        asked = spread(prompts, sampling, seeds)
        self.check(prompts)
        limits = self._limits(prompts, [each for _, each, _ in asked])
        requests = [Request(*each, limit) for each, limit in zip(asked, limits, strict=True)]
        done: dict[int, Completion] = {}
        order = _order(prompts)
        while len(done) < len(prompts):
            waiting = [i for i in order if i not in done]
            found = self._as_far_as_it_goes([requests[i] for i in waiting])
            done.update((waiting[place], each) for place, each in found.items())
        return [done[i] for i in range(len(prompts))]

    def _as_far_as_it_goes(self, requests: list[Request]) -> dict[int, Completion]:
        """Completions by their places; where memory runs out, of those that ended before.

        Raises:
            MachineError: a single request does not fit the memory.
        """
        rows = min(self._rows(requests), len(requests))
        drawn: list[Draw] = []
        try:
            for draw in RunningBatch(self.model, requests, rows).draws():
                drawn.append(draw)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                one = requests[0]
                raise MachineError(
                    f"a prompt of {len(one.prompt)} tokens with up to {one.limit} new ones does "
                    f"not fit the memory of this {self.model.cos.device.type}: write a smaller "
                    "max_new_tokens"
                ) from error
            self.max_batch = rows // 2
        # What the error held is gone by here.
        if rows > self.max_batch:
            let_go(self.model.cos.device)
        return _completions(requests, drawn)

    def _rows(self, requests: Sequence[Request]) -> int:
        """Requests at a time.

        On a CPU the keys and values that a step reads should stay in its last-level cache: 256 rows
        from memory cost 11 times what 64 rows from the cache do.
        """
        if self.model.cos.device.type != "cpu":
            return self.max_batch
        config = self.model.config
        longest = max(len(each.prompt) + each.limit for each in requests)
        held = 8 * config.layers * config.key_width * longest
        return min(self.max_batch, max(_FEWEST_ROWS, _CPU_CACHE_BYTES // held))

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """The tokens of one completion as they are drawn, the stop token included.

        Raises:
            InputError: the prompt is empty, longer than the context, or holds an unknown token.
        """
        self.check([prompt])
        (limit,) = self._limits([prompt], [sampling])
        request = Request(prompt, sampling, sampling.seed, limit)
        for _, tokens, _ in RunningBatch(self.model, [request], 1).draws():
            yield int(tokens[0])

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises `InputError` for prompts that this model cannot read."""
        config = self.model.config
        for prompt in prompts:
            if not len(prompt):
                raise InputError("the prompt is empty: write at least one character")
            if len(prompt) > config.context:
                raise InputError(
                    f"the prompt has {len(prompt)} tokens and the model's context holds "
                    f"{config.context}: shorten it"
                )
            if min(prompt) < 0 or max(prompt) >= config.vocab_size:
                raise InputError(
                    f"the prompt holds token {max(prompt)}, outside the model's vocabulary of "
                    f"{config.vocab_size}: use the tokenizer saved with the model"
                )

    def _limits(self, prompts: Sequence[Sequence[int]], samplings: list[Sampling]) -> list[int]:
        """New tokens each request has room for; the last one drawn is never read, so needs none."""
        room = self.model.config.context + 1
        return [
            min(s.max_new_tokens, room - len(p)) for p, s in zip(prompts, samplings, strict=True)
        ]


def spread(
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    seeds: Sequence[int] | None,
) -> list[tuple[Sequence[int], Sampling, int]]:
    """Each prompt with its sampling and its seed, as `generate` takes them."""
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    own = [each.seed for each in samplings] if seeds is None else list(seeds)
    if not len(prompts) == len(samplings) == len(own):
        raise ValueError("generate needs a sampling and a seed for each prompt")
    return list(zip(prompts, samplings, own, strict=True))


def _order(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Prompts of like length together, since attention reads up to the longest row of a batch; and
    equal ones, which are read once."""
    first: dict[tuple[int, ...], int] = {}
    same = [first.setdefault(tuple(prompt), place) for place, prompt in enumerate(prompts)]
    return sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), same[i], i))


def _completions(requests: Sequence[Request], drawn: Sequence[Draw]) -> dict[int, Completion]:
    """Of those that have ended, by their places."""
    if not drawn:
        return {}
    ids, tokens, logprobs = (torch.cat(each).cpu().numpy() for each in zip(*drawn, strict=True))
    order = np.argsort(ids, kind="stable")
    ends = np.cumsum(np.bincount(ids, minlength=len(requests)))[:-1]
    parts = (np.split(each[order], ends) for each in (tokens, logprobs))
    found = {}
    for place, (request, own, of_each) in enumerate(zip(requests, *parts, strict=True)):
        stops = np.isin(own[: request.limit], request.sampling.stop_ids).nonzero()[0]
        length = int(stops[0]) + 1 if len(stops) else request.limit
        if length <= len(own):
            finish = "stop" if len(stops) else "length"
            found[place] = Completion(own[:length].tolist(), of_each[:length].copy(), finish)
    return found
