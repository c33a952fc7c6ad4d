"""Policies small enough to list every sequence: expected gradients and fixed points are exact."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.model.actor_critic import ActorCritic
from fourstage.objectives.advantages import group_advantages


class World:
    """All sequences of `length` tokens of a vocabulary, with a reward each and a reference policy.

    A prefix is numbered level by level: the empty one, those of one token, and so on.
    """

    def __init__(self, vocabulary: int = 8, length: int = 3, seed: int = 0, spread: float = 1.0):
        self.vocabulary, self.length = vocabulary, length
        listed = list(product(range(vocabulary), repeat=length))
        self.sequences = torch.tensor(listed)
        self.starts = [sum(vocabulary**k for k in range(t)) for t in range(length)]
        self.prefixes = sum(vocabulary**k for k in range(length))
        drawn = torch.Generator().manual_seed(seed)
        options = {"generator": drawn, "dtype": torch.float64}
        self.rewards = spread * torch.randn(len(listed), **options)
        self.reference = torch.randn(self.prefixes, vocabulary, **options).log_softmax(-1)
        # [sequences, length] the prefix before each token.
        inputs = torch.cat([torch.zeros_like(self.sequences[:, :1]), self.sequences[:, :-1]], 1)
        self.before = prefix_of_cells(self, inputs.flatten()).view(-1, length)

    def token_logprobs(self, table: Tensor) -> Tensor:
        """[prefixes, vocabulary] log-probabilities -> [sequences, length]."""
        return table[self.before, self.sequences]

    def distribution(self, table: Tensor) -> Tensor:
        """[sequences] probabilities."""
        return self.token_logprobs(table).sum(1).exp()

    def batch(self, loss_weights: Tensor, copies: Tensor | None = None) -> Batch:
        """The sequences (or `copies` of them, by index) as documents of `length` trained cells.

        The weight of a document is the probability of meeting it, so sums are expectations.
        """
        sequences = self.sequences if copies is None else self.sequences[copies]
        inputs = torch.cat([torch.zeros_like(sequences[:, :1]), sequences[:, :-1]], dim=1)
        weights = loss_weights.repeat_interleave(self.length)
        lengths = (self.length,) * len(sequences)
        return Batch(inputs.flatten(), lengths, sequences.flatten(), {"loss_weights": weights})

    def action_values(self, table: Tensor, outcomes: Tensor) -> tuple[Tensor, Tensor]:
        """Q [prefixes, vocabulary] and V [prefixes] of `outcomes` [sequences] under the policy."""
        q = torch.zeros(self.prefixes, self.vocabulary, dtype=torch.float64)
        v = torch.zeros(self.prefixes, dtype=torch.float64)
        ahead = outcomes
        for t in reversed(range(self.length)):
            level = slice(self.starts[t], self.starts[t] + self.vocabulary**t)
            q[level] = ahead.view(-1, self.vocabulary)
            v[level] = (table[level].exp() * q[level]).sum(-1)
            ahead = v[level]
        return q, v


class TabularPolicy(nn.Module):
    """Free logits for every prefix, with the interface of a `Transformer`."""

    plain_head = None

    def __init__(self, world: World, logits: Tensor):
        super().__init__()
        self.world = world
        self.config = SimpleNamespace(vocab_size=world.vocabulary, experts=0)
        self.table = nn.Parameter(logits.clone())

    def forward(self, tokens: Tensor, layout) -> Tensor:
        return self.table[prefix_of_cells(self.world, tokens)]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def log_table(self) -> Tensor:
        return self.table.log_softmax(-1)


class TabularCritic(nn.Module):
    """A free value for every prefix."""

    def __init__(self, world: World, values: Tensor):
        super().__init__()
        self.world = world
        self.table = nn.Parameter(values.clone())

    def forward(self, tokens: Tensor, layout) -> Tensor:
        return self.table[prefix_of_cells(self.world, tokens)][:, None]

    def scores(self, hidden: Tensor) -> Tensor:
        return hidden.squeeze(-1)


def prefix_of_cells(world: World, tokens: Tensor) -> Tensor:
    """[cells] the prefix that each cell has read; the first token of a document stands for none."""
    rows = tokens.view(-1, world.length)
    columns = [torch.zeros_like(rows[:, 0])]
    for t in range(1, world.length):
        columns.append(columns[-1] * world.vocabulary + rows[:, t])
    return torch.stack([c + s for c, s in zip(columns, world.starts, strict=True)], 1).flatten()


def tabular_actor_critic(world: World, seed: int = 1) -> ActorCritic:
    """A policy away from the reference, and a critic that knows nothing."""
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randn(world.prefixes, world.vocabulary, generator=drawn, dtype=torch.float64)
    values = torch.randn(world.prefixes, generator=drawn, dtype=torch.float64)
    return ActorCritic(TabularPolicy(world, logits), TabularCritic(world, values))


def group_table(world: World, size: int, scale_by_std: bool) -> tuple[Tensor, Tensor]:
    """Every ordered group of `size` sequences: members and advantages, each [groups, size]."""
    count = len(world.rewards)
    members = torch.cartesian_prod(*[torch.arange(count)] * size)
    group = torch.arange(len(members)).repeat_interleave(size)
    found = group_advantages(world.rewards[members.flatten()], group, scale_by_std)
    return members, found.view(-1, size)


def expected_advantages(probabilities: Tensor, members: Tensor, advantages: Tensor) -> Tensor:
    """[sequences] mean advantage of a sequence over the groups it can stand in, as its first."""
    others = probabilities[members[:, 1:]].prod(1)
    mean = torch.zeros_like(probabilities)
    return mean.index_add(0, members[:, 0], others * advantages[:, 0])


def tilted(ref: Tensor, q: Tensor, beta: float | Tensor) -> Tensor:
    """Log of `ref exp(q / beta)`, normalised over the last axis; `ref` is a log, too."""
    return (ref + q / beta).log_softmax(-1)


def reciprocal(ref: Tensor, q: Tensor, beta: float) -> Tensor:
    """Log of `ref / (1 - (q - V) / beta)` [rows, choices], `ref` a log.

    V is the number that normalises it, found by bisection; it then is the mean of q under the
    result.
    """

    def candidate(v: Tensor) -> Tensor:
        return ref.exp() / (1 - (q - v[:, None]) / beta)

    low, high = (q.max(1).values + edge for edge in (-beta + 1e-12, 1e-12))
    for _ in range(100):
        middle = (low + high) / 2
        too_much = candidate(middle).sum(1) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return candidate(high).log()


def backwards(world: World, respond) -> Tensor:
    """Log table in which each prefix's row is `respond(its reference row, Q)`, logs both.

    Q [prefixes, vocabulary] is the expected reward of the result itself, so tokens are settled from
    the last one back.
    """
    table = torch.empty_like(world.reference)
    ahead = world.rewards
    for t in reversed(range(world.length)):
        level = slice(world.starts[t], world.starts[t] + world.vocabulary**t)
        q = ahead.view(-1, world.vocabulary)
        table[level] = respond(world.reference[level], q)
        ahead = (table[level].exp() * q).sum(1)
    return table


def total_variation(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().sum() / 2)


def settle(parameters: list[nn.Parameter], step, iterations: int = 200) -> None:
    """L-BFGS on exact gradients of a smooth loss, until they vanish; `step()` returns the loss."""
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = step()
        loss.backward()
        return loss

    optimiser.step(closure)


def descend(parameters: list[nn.Parameter], step, steps: int, rate: float = 0.1) -> None:
    """Adam on exact gradients, the rate falling to zero; `step()` returns the loss."""
    optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    for index in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - index / steps)
        optimiser.zero_grad()
        step().backward()
        optimiser.step()
