"""Preference losses end at their own minimiser, found in another way, over all sequences.

Comparisons follow Bradley-Terry of known rewards. Each pair stands in the batch both ways round,
weighted by the probability of that label, so losses are expectations without noise.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from scipy.sparse import coo_matrix
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.objectives.kto import KTO
from fourstage.objectives.objective import with_survey
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preferences import Preference, preference_of
from objectives_tables import (
    TabularPolicy,
    World,
    descend,
    settle,
    tabular_actor_critic,
    tilted,
    total_variation,
)

# Others that each sequence is compared with: any number that links all sequences will do.
OTHERS = 3


def policy_of(world: World) -> TabularPolicy:
    return tabular_actor_critic(world).policy


def pairs_of(world: World) -> tuple[Tensor, Tensor]:
    """[pairs, 2] chosen and rejected sequences, both ways round, and the share of each label."""
    count = len(world.rewards)
    drawn = torch.Generator().manual_seed(3)
    sides = [
        torch.stack([torch.arange(count), torch.randperm(count, generator=drawn)], 1)
        for _ in range(OTHERS)
    ]
    once = torch.cat([each[each[:, 0] != each[:, 1]] for each in sides])
    pairs = torch.cat([once, once.flip(1)])
    better = world.rewards[pairs[:, 0]] - world.rewards[pairs[:, 1]]
    return pairs, torch.sigmoid(better)


def comparisons(world: World) -> Batch:
    pairs, chance = pairs_of(world)
    copies = pairs.flatten()
    batch = world.batch(torch.ones(len(copies), dtype=torch.float64), copies)
    batch.streams["ref_logprobs"] = world.token_logprobs(world.reference)[copies].flatten()
    batch.documents["group"] = torch.arange(len(pairs)).repeat_interleave(2)
    batch.documents["weights"] = chance.repeat_interleave(2)
    return batch


def trained(world: World, told: Preference, reach=settle) -> tuple[Tensor, float]:
    """Where training ends: the distribution over sequences, and the loss."""
    policy, batch = policy_of(world), comparisons(world)
    objective = DirectPreference(told)
    counts = objective.counts(batch)

    def step() -> Tensor:
        sums = objective.sums(policy, batch)[0]
        return sum(sums[name] / counts[name] for name in sums)

    reach([policy.table], step)
    return world.distribution(policy.log_table().detach()), float(step().detach())


def adam(parameters, step) -> None:
    """For a loss with corners."""
    descend(parameters, step, steps=500)


def minimised(world: World, loss) -> tuple[Tensor, float]:
    """The distribution with the least `loss(logp, ref, pairs, chance)`, by L-BFGS on its logits.

    `logp` and `ref` are log-probabilities of whole sequences.
    """
    pairs, chance = pairs_of(world)
    ref = world.distribution(world.reference).log()

    def value(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.from_numpy(numbers.copy()).requires_grad_()
        found = loss(free.log_softmax(0), ref, pairs, chance)
        found.backward()
        return found.item(), free.grad.numpy()

    told = minimize(
        value, ref.numpy(), jac=True, method="L-BFGS-B",
        options={"maxiter": 3000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-9},
    )  # fmt: skip
    return torch.from_numpy(told.x).softmax(0), float(told.fun)


def logistic(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(-x))


def mean(values: Tensor, chance: Tensor) -> Tensor:
    return (values * chance).sum() / chance.sum()


def of_ratios(shape):
    """A loss of the difference of log-ratios."""

    def loss(logp: Tensor, ref: Tensor, pairs: Tensor, chance: Tensor) -> Tensor:
        ratios = (logp - ref)[pairs]
        return mean(shape(ratios[:, 0] - ratios[:, 1]), chance)

    return loss


def simpo(logp: Tensor, ref: Tensor, pairs: Tensor, chance: Tensor) -> Tensor:
    means = (logp / 3)[pairs]
    return mean(logistic(2.0 * (means[:, 0] - means[:, 1]) - 0.5), chance)


def cpo(logp: Tensor, ref: Tensor, pairs: Tensor, chance: Tensor) -> Tensor:
    own = logp[pairs]
    nll = mean(-own[:, 0] / 3, chance)
    return mean(logistic(0.6 * (own[:, 0] - own[:, 1])), chance) + 0.3 * nll


def orpo(logp: Tensor, ref: Tensor, pairs: Tensor, chance: Tensor) -> Tensor:
    p = torch.exp(logp / 3)[pairs]
    odds = p / (1 - p)
    nll = mean(-logp[pairs][:, 0] / 3, chance)
    return nll + 2.0 * mean(logistic(torch.log(odds[:, 0] / odds[:, 1])), chance)


CASES = {
    "dpo": (preference_of("dpo", beta=0.6), of_ratios(lambda x: logistic(0.6 * x))),
    "cdpo": (
        preference_of("cdpo", beta=0.6, label_smoothing=0.2),
        of_ratios(lambda x: 0.8 * logistic(0.6 * x) + 0.2 * logistic(-0.6 * x)),
    ),
    # 1 / (2 beta) of a token is three times that of a response.
    "ipo": (preference_of("ipo", beta=2.0), of_ratios(lambda x: (x / 3 - 1 / 4) ** 2)),
    "dpo by length": (
        preference_of("dpo", beta=1.8, by_length=True),
        of_ratios(lambda x: logistic(0.6 * x)),
    ),
    "simpo": (preference_of("simpo", beta=2.0, gamma=0.5), simpo),
    "cpo": (preference_of("cpo", beta=0.6, nll_coefficient=0.3), cpo),
    "orpo": (preference_of("orpo", beta=2.0), orpo),
}


@pytest.mark.parametrize("name", CASES)
def test_training_ends_at_the_numerical_minimiser(name):
    world = World(4, 3)
    told, loss = CASES[name]
    target, least = minimised(world, loss)
    found, reached = trained(world, told)
    assert total_variation(target, world.distribution(policy_of(world).log_table())) > 0.2
    assert reached == pytest.approx(least, abs=1e-4)
    assert total_variation(found, target) <= 0.02


def test_dpo_ends_at_the_reference_tilted_by_the_reward():
    world = World()
    ref = world.distribution(world.reference).log()
    target = tilted(ref, world.rewards, 0.6).exp()
    found, _ = trained(world, preference_of("dpo", beta=0.6))
    assert total_variation(found, target) <= 0.02


def test_hinge_reaches_the_least_loss_that_a_linear_program_finds():
    world = World(4, 3)
    pairs, chance = pairs_of(world)
    found, reached = trained(world, preference_of("hinge", beta=0.6), adam)
    count, sequences = len(pairs), len(world.rewards)
    rows = np.arange(count)
    # Least sum of w s under s >= 1 - beta (x_c - x_r) and s >= 0, over log-ratios x and losses s.
    entries = [
        (rows, pairs[:, 0].numpy(), np.full(count, -0.6)),
        (rows, pairs[:, 1].numpy(), np.full(count, 0.6)),
        (rows, sequences + rows, np.full(count, -1.0)),
    ]
    at, columns, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    matrix = coo_matrix((values, (at, columns)), shape=(count, sequences + count))
    weights = (chance / chance.sum()).numpy()
    solved = linprog(
        np.concatenate([np.zeros(sequences), weights]),
        A_ub=matrix.tocsr(),
        b_ub=np.full(count, -1.0),
        bounds=[(None, None)] * sequences + [(0, None)] * count,
    )
    assert solved.fun <= reached <= solved.fun + 2e-3
    assert solved.fun < 0.95, "1 is the loss of the reference"
    best = world.rewards > world.rewards.median()
    assert found[best].sum() > world.distribution(world.reference)[best].sum()


# KTO


def labelled(world: World, strangers: str) -> Batch:
    """Every sequence as good and as bad, by the probability of either, and strangers."""
    good = torch.sigmoid(2 * world.rewards)
    ref = world.distribution(world.reference)
    count = len(ref)
    copies = torch.arange(count).repeat(3)
    batch = world.batch(torch.ones(3 * count, dtype=torch.float64), copies)
    batch.streams["ref_logprobs"] = world.token_logprobs(world.reference)[copies].flatten()
    batch.documents["labels"] = torch.tensor([1, -1, 0]).repeat_interleave(count)
    # Strangers are drawn from the reference, or are the best sequences.
    best = torch.softmax(5 * world.rewards, 0) if strangers == "best" else ref
    batch.documents["weights"] = torch.cat([ref * good, ref * (1 - good), best])
    return batch


@pytest.mark.parametrize("strangers", ["reference", "best"])
def test_kto_ends_where_its_own_gradient_vanishes(strangers):
    """Against the loss written over whole sequences, with z found anew at each evaluation."""
    world, beta, bad = World(4, 2), 0.7, 1.3
    batch, objective, policy = labelled(world, strangers), KTO(beta, 1.0, bad), policy_of(world)

    def step() -> Tensor:
        informed = with_survey(objective, policy, batch)
        count = objective.counts(informed)["responses"]
        return objective.sums(policy, informed)[0]["responses"] / count

    def by_sequences(table: Tensor) -> tuple[Tensor, float]:
        free = table.clone().requires_grad_()
        ratios = world.token_logprobs(free.log_softmax(-1) - world.reference).sum(1)
        weights = batch.documents["weights"].view(3, -1)
        z = max(0.0, float((weights[2] * ratios).sum().detach()))
        gain = weights[0] / (1 + torch.exp(beta * (ratios - z)))
        loss = gain + bad * weights[1] / (1 + torch.exp(-beta * (ratios - z)))
        total = weights[0].sum() + weights[1].sum()
        return torch.autograd.grad(loss.sum() / total, free)[0], z

    expected, _ = by_sequences(policy.table.detach())
    found = torch.autograd.grad(step(), policy.table)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-2
    # The loss moves with z, so no line is searched.
    descend([policy.table], step, steps=600)
    left, z = by_sequences(policy.table.detach())
    assert left.abs().max() < 2e-4
    assert (z > 0.1) == (strangers == "best")
    # Strangers from the reference are never likelier than they were: z is 0.
    p, ref = world.distribution(policy.log_table()), world.distribution(world.reference)
    good = world.rewards > 0
    assert p[good].sum() > ref[good].sum() + 0.2
