"""A batch in progress: a row leaves it as its request ends, and the next request takes its place.

Rows are drawn for in step, each at a position of its own. So a step costs what a full batch costs
as long as requests wait, and what the unfinished rows cost at the end (Yu et al., *Orca*, 2022,
section 4.1: iteration-level scheduling).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourstage.generation.sampling import Drawer, Sampling, uniforms
from fourstage.model.cache import KVCache
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from fourstage.precision import autocast, product_dtype

# Taking rows out costs a copy of those that move; it pays from about a tenth of the batch on.
_FINISHED_SHARE = 0.1
# Reading the prompts of newcomers costs a forward pass, however few they are.
_FREE_SHARE = 0.125

# The requests [rows], the token drawn for each [rows], and its log-probability [rows].
Draw = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        limit: new tokens it has room for; the last one drawn is never read, so needs none.
    """

    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    limit: int


@dataclass
class _Read:
    """Prompts that were read: row i of `cache` and of `logits` [prompts, vocab] is prompt i."""

    prompts: list[tuple[int, ...]]
    cache: KVCache
    logits: Tensor


class RunningBatch:
    """Draws for `requests` in their order, at most `rows` at a time.

    Equal prompts that follow one another are read once, however many batches they span.
    """

    def __init__(self, model: Transformer, requests: Sequence[Request], rows: int):
        self.model, self.requests = model, requests
        self.device = model.cos.device
        self.rows = min(rows, len(requests))
        self.everyone = Drawer([each.sampling for each in requests], self.device)
        self.stops = _stop_table([each.sampling for each in requests], self.device)
        self.limits = torch.tensor([each.limit for each in requests], device=self.device)
        self.entered = 0
        self._kept: _Read | None = None

    @property
    def waiting(self) -> int:
        return len(self.requests) - self.entered

    @torch.inference_mode()
    def draws(self) -> Iterator[Draw]:
        """What each step draws; a request stays in until its row is next needed or taken out, so
        it can be drawn for after its end."""
        yield self._begin()
        while True:
            left = int(self.unfinished.sum())
            free = len(self.unfinished) - left
            if self.waiting and (not left or free >= self.rows * _FREE_SHARE):
                yield self._let_in(free)
                continue
            if not left:
                return
            if not self.waiting and free >= len(self.unfinished) * _FINISHED_SHARE:
                self._take_out(left)
            if self.cache.is_full:
                self.cache.empty(~self.unfinished)
            # Not around the whole loop: a generator's context would leak to whoever consumes it.
            with autocast(self.device):
                logits = self.model.logits(self.model.decode(self.tokens, self.cache))
            yield self._drawn(logits)

    def _begin(self) -> Draw:
        """Reads the prompts of the first rows."""
        first = self._next(self.rows)
        model, requests = self.model, [self.requests[i] for i in first]
        longest = max(len(each.prompt) + each.limit - 1 for each in self.requests)
        read = _read(model, [each.prompt for each in requests], self.rows, longest)
        places = _places(read.prompts, requests)
        self._keep_last(read)
        self.cache, logits = read.cache, read.logits
        if len(read.prompts) < self.rows:
            rows = torch.tensor(places, device=self.device)
            self.cache.keep(rows)
            logits = logits[rows]
        self.most = max(each.limit for each in self.requests)
        self.numbers = uniforms([each.seed for each in requests], self.most).to(self.device)
        self.unfinished = torch.ones(self.rows, dtype=torch.bool, device=self.device)
        self.counts = torch.zeros(self.rows, dtype=torch.long, device=self.device)
        self.tokens = self.counts
        self._assign(torch.tensor(first, device=self.device))
        return self._drawn(logits)

    def _next(self, count: int) -> range:
        """The next requests in line, which are not waiting from here on."""
        count = min(count, self.waiting)
        self.entered += count
        return range(self.entered - count, self.entered)

    def _assign(self, ids: Tensor) -> None:
        """Row i draws for request `ids[i]`."""
        self.ids = ids
        self.drawer = self.everyone.at(ids)
        self.room = self.limits[ids]
        self.stop_ids = None if self.stops is None else self.stops[ids]

    def _drawn(self, logits: Tensor) -> Draw:
        """Draws a token for each row."""
        place = self.counts.clamp(max=self.most - 1)
        uniform = self.numbers.gather(1, place[:, None]).squeeze(1)
        self.tokens, logprobs = self.drawer(logits, uniform)
        self.counts = self.counts + 1
        self.unfinished = self.unfinished & ~_ended(
            self.tokens, self.counts, self.stop_ids, self.room
        )
        return self.ids, self.tokens, logprobs

    def _take_out(self, left: int) -> None:
        """Drops the rows that have finished."""
        kept = _filling_holes(self.unfinished, left)
        self.cache.keep(kept)
        self.numbers, self.counts = self.numbers[kept], self.counts[kept]
        self.tokens, self.unfinished = self.tokens[kept], self.unfinished[kept]
        self._assign(self.ids[kept])

    def _let_in(self, free: int) -> Draw:
        """Gives the rows that have finished to those who wait, and draws their first tokens."""
        ids = self._next(free)
        rows = (~self.unfinished).nonzero().squeeze(1)[: len(ids)]
        requests = [self.requests[i] for i in ids]
        logits = self._enter(requests, rows)
        entering = torch.tensor(ids, device=self.device)
        seeds = [each.seed for each in requests]
        self.numbers[rows] = uniforms(seeds, self.most).to(self.device)
        tokens, logprobs = self.everyone.at(entering)(logits, self.numbers[rows, 0])
        stops = None if self.stops is None else self.stops[entering]
        counts = torch.ones_like(entering)
        self.counts[rows] = counts
        self.unfinished[rows] = ~_ended(tokens, counts, stops, self.limits[entering])
        # A copy: what the last step drew is with whoever consumes it.
        self.tokens = self.tokens.index_copy(0, rows, tokens)
        self._assign(self.ids.index_copy(0, rows, entering))
        return entering, tokens, logprobs

    def _enter(self, requests: list[Request], rows: Tensor) -> Tensor:
        """Fills rows of the cache with prompts: the last logits of each, [requests, vocab]."""
        held = self._kept
        known = 0
        if held is not None:
            while known < len(requests) and tuple(requests[known].prompt) == held.prompts[0]:
                known += 1
        parts = []
        if held is not None and known:
            here = torch.zeros(known, dtype=torch.long, device=self.device)
            self.cache.copy(rows[:known], held.cache, here)
            parts.append(held.logits[here])
        if known < len(requests):
            prompts = [each.prompt for each in requests[known:]]
            read = _read(self.model, prompts)
            places = torch.tensor(_places(read.prompts, requests[known:]), device=self.device)
            self.cache.copy(rows[known:], read.cache, places)
            parts.append(read.logits[places])
            self._keep_last(read)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _keep_last(self, read: _Read) -> None:
        """Holds the prompt read last for as long as the next in line has the same."""
        last = len(read.prompts) - 1
        self._kept = None
        if self.waiting and tuple(self.requests[self.entered].prompt) == read.prompts[last]:
            cache = read.cache.alone(last, len(read.prompts[last]))
            self._kept = _Read([read.prompts[last]], cache, read.logits[last:].clone())


def _read(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    rows: int | None = None,
    capacity: int | None = None,
) -> _Read:
    """Reads prompts, equal ones once, into a cache with room for so many rows of so many tokens."""
    device = model.cos.device
    different = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    lengths = [len(prompt) for prompt in different]
    capacity = min(capacity or max(lengths), model.config.context)
    dtype = product_dtype(device) or model.cos.dtype
    cache = KVCache(model.config, rows or len(different), capacity, device, dtype)
    layout = Layout(lengths, device)
    flat = torch.tensor([token for prompt in different for token in prompt], device=device)
    with autocast(device):
        logits = model.logits(model(flat, layout, cache=cache)[layout.last_cells])
    return _Read(different, cache, logits)


def _places(prompts: Sequence[tuple[int, ...]], requests: Sequence[Request]) -> list[int]:
    """Where each request's prompt stands among those that were read."""
    place = {prompt: number for number, prompt in enumerate(prompts)}
    return [place[tuple(each.prompt)] for each in requests]


def _ended(tokens: Tensor, counts: Tensor, stops: Tensor | None, room: Tensor) -> Tensor:
    """[rows] whether a request has drawn a stop token or all that it has room for."""
    full = counts >= room
    return full if stops is None else full | (tokens[:, None] == stops).any(dim=1)


def _stop_table(samplings: Sequence[Sampling], device: torch.device) -> Tensor | None:
    """[requests, most stop ids], filled up with -1; None when nobody stops."""
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
