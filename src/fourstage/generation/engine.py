"""Batched generation with a key-value cache: rollouts, samples, `generate`, `chat`, serving.

Prompts of different length share a batch without padding their computation; rows that have
finished are taken out, so a step costs what the unfinished rows cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fourstage.errors import InputError, MachineError
from fourstage.generation.sampling import Drawer, Sampling, uniforms
from fourstage.memory import is_out_of_memory, let_go
from fourstage.model.cache import KVCache
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from fourstage.precision import autocast, product_dtype

# Taking rows out costs a copy of those that move; it pays from about a tenth of the batch on.
_FINISHED_SHARE = 0.1
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
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        seeds = [each.seed for each in samplings] if seeds is None else list(seeds)
        if not len(prompts) == len(samplings) == len(seeds):
            raise ValueError("generate needs a sampling and a seed for each prompt")
        self.check(prompts)
        # Prompts of like length together: attention reads up to the longest row of a batch.
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        completions: dict[int, Completion] = {}
        while len(completions) < len(prompts):
            for chunk in self._chunks(order[len(completions) :], prompts, samplings):
                done = self._that_fits(
                    [prompts[i] for i in chunk],
                    [samplings[i] for i in chunk],
                    [seeds[i] for i in chunk],
                )
                if done is None:
                    let_go(self.model.cos.device)
                    self.max_batch = len(chunk) // 2
                    break
                completions.update(zip(chunk, done, strict=True))
        return [completions[i] for i in range(len(prompts))]

    def _that_fits(
        self, prompts: list[Sequence[int]], samplings: list[Sampling], seeds: list[int]
    ) -> list[Completion] | None:
        """The completions; None where there is no memory for so many at a time."""
        try:
            return self._batch(prompts, samplings, seeds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(prompts) == 1:
                raise MachineError(
                    f"a prompt of {len(prompts[0])} tokens with up to "
                    f"{self._limits(prompts, samplings)[0]} new ones does not fit the memory of "
                    f"this {self.model.cos.device.type}: write a smaller max_new_tokens"
                ) from error
            return None

    def _chunks(
        self, order: list[int], prompts: Sequence[Sequence[int]], samplings: list[Sampling]
    ) -> Iterator[list[int]]:
        """Cuts the requests into batches of like size, of at most `max_batch` rows.

        On a CPU the keys and values that a step reads should stay in its last-level cache: 256 rows
        from memory cost 11 times what 64 rows from the cache do.
        """
        if not order:
            return
        rows = self.max_batch
        if self.model.cos.device.type == "cpu":
            config = self.model.config
            longest = max(len(prompts[i]) + samplings[i].max_new_tokens for i in order)
            held = 8 * config.layers * config.key_width * min(longest, config.context)
            rows = min(rows, max(_FEWEST_ROWS, _CPU_CACHE_BYTES // held))
        count = -(-len(order) // rows)
        for part in range(count):
            yield order[len(order) * part // count : len(order) * (part + 1) // count]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """The tokens of one completion as they are drawn, the stop token included.

        Raises:
            InputError: the prompt is empty, longer than the context, or holds an unknown token.
        """
        self.check([prompt])
        for _, tokens, _ in self._steps([prompt], [sampling], [sampling.seed]):
            token = int(tokens[0])
            yield token
            if token in sampling.stop_ids:
                return

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

    def _batch(
        self,
        prompts: list[Sequence[int]],
        samplings: list[Sampling],
        seeds: list[int],
    ) -> list[Completion]:
        limits = self._limits(prompts, samplings)
        tokens = np.zeros((len(prompts), max(limits)), dtype=np.int64)
        logprobs = np.zeros((len(prompts), max(limits)), dtype=np.float32)
        steps = list(self._steps(prompts, samplings, seeds))
        for step, (rows, drawn, logprob) in enumerate(steps):
            rows = rows.cpu().numpy()
            tokens[rows, step] = drawn.cpu().numpy()
            logprobs[rows, step] = logprob.cpu().numpy()
        completions = []
        for row, (limit, sampling) in enumerate(zip(limits, samplings, strict=True)):
            stops = np.isin(tokens[row, :limit], sampling.stop_ids).nonzero()[0]
            length = int(stops[0]) + 1 if len(stops) else limit
            completions.append(
                Completion(
                    tokens[row, :length].tolist(),
                    logprobs[row, :length].copy(),
                    "stop" if len(stops) else "length",
                )
            )
        return completions

    def _limits(self, prompts: Sequence[Sequence[int]], samplings: list[Sampling]) -> list[int]:
        """New tokens each request has room for; the last one drawn is never read, so needs none."""
        room = self.model.config.context + 1
        return [
            min(s.max_new_tokens, room - len(p)) for p, s in zip(prompts, samplings, strict=True)
        ]

    @torch.inference_mode()
    def _steps(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: list[Sampling],
        seeds: list[int],
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields, a step: the requests [n], the token drawn for each [n], its log-probability [n].

        A request stays in until rows are next taken out, so it can be drawn for after its end.
        """
        device = self.model.cos.device
        limits = self._limits(prompts, samplings)
        drawer = Drawer(samplings, device)
        numbers = uniforms(seeds, max(limits)).to(device)
        stops = _stop_table(samplings, device)
        rows = torch.arange(len(prompts), device=device)
        unfinished = torch.ones(len(prompts), dtype=torch.bool, device=device)
        room = torch.tensor(limits, device=device)
        ends = set(limits)
        cache, logits = self._prefill(prompts, max(limits))
        for step in range(max(limits)):
            tokens, logprobs = drawer(logits, numbers[:, step])
            yield rows, tokens, logprobs
            if stops is not None:
                unfinished &= ~(tokens[:, None] == stops).any(dim=1)
            if step + 1 in ends:
                unfinished &= room > step + 1
            left = int(unfinished.sum())
            if not left:
                return
            # A row at its limit may have no cell left in the cache: it leaves at once.
            if step + 1 in ends or left <= len(rows) * (1 - _FINISHED_SHARE):
                kept = _filling_holes(unfinished, left)
                cache.keep(kept)
                drawer.keep(kept)
                rows, tokens, numbers, room = rows[kept], tokens[kept], numbers[kept], room[kept]
                stops = None if stops is None else stops[kept]
                unfinished = unfinished[kept]
            # Not around the whole loop: a generator's context would leak to whoever consumes it.
            with autocast(device):
                logits = self.model.logits(self.model.decode(tokens, cache))

    def _prefill(self, prompts: Sequence[Sequence[int]], new: int) -> tuple[KVCache, Tensor]:
        """Reads the prompts, equal ones once: the cache and each one's last logits."""
        model = self.model
        device = model.cos.device
        first: dict[tuple[int, ...], int] = {}
        copies = [first.setdefault(tuple(prompt), len(first)) for prompt in prompts]
        lengths = [len(prompt) for prompt in first]
        capacity = min(max(lengths) + new - 1, model.config.context)
        dtype = product_dtype(device) or model.cos.dtype
        cache = KVCache(model.config, len(prompts), capacity, device, dtype)
        layout = Layout(lengths, device)
        flat = torch.tensor([token for prompt in first for token in prompt], device=device)
        with autocast(device):
            logits = model.logits(model(flat, layout, cache=cache)[layout.last_cells])
        if len(first) < len(prompts):
            rows = torch.tensor(copies, device=device)
            cache.keep(rows)
            logits = logits[rows]
        return cache, logits


def _stop_table(samplings: Sequence[Sampling], device: torch.device) -> Tensor | None:
    """[batch, most stop ids], filled up with -1; None when nobody stops."""
    widest = max(len(sampling.stop_ids) for sampling in samplings)
    if not widest:
        return None
    table = [[*s.stop_ids, *[-1] * (widest - len(s.stop_ids))] for s in samplings]
    return torch.tensor(table, device=device)


def _filling_holes(unfinished: Tensor, left: int) -> Tensor:
    """An order of the `left` unfinished rows in which as few as possible move: [left]."""
    rows = torch.arange(left, device=unfinished.device)
    holes = (~unfinished[:left]).nonzero().squeeze(-1)
    rows[holes] = left + unfinished[left:].nonzero().squeeze(-1)
    return rows
