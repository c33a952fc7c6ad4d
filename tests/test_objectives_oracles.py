"""PPO and GRPO reach the exact optimum of their setting, through the functions that training uses.

Vocabulary 8, length 3: all 512 sequences are listed, each weighted by its probability, so gradients
are expectations without noise.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.model.actor_critic import ActorCritic
from fourstage.objectives.advantages import gae, rewards_with_kl, spread, whiten
from fourstage.objectives.grpo import GRPO
from fourstage.objectives.logprobs import logprobs
from fourstage.objectives.ppo import PPO
from objectives_tables import (
    World,
    backwards,
    descend,
    expected_advantages,
    group_table,
    reciprocal,
    tabular_actor_critic,
    total_variation,
)

BETA = 0.6


def ppo_batch(
    world: World, module: ActorCritic, lam: float, whitened: bool, values: Tensor | None = None
) -> Batch:
    """An on-policy rollout of every sequence; `values` [prefixes] or the critic's own."""
    table = module.policy.log_table().detach()
    batch = world.batch(world.distribution(table))
    s, lengths = batch.streams, batch.lengths
    with torch.no_grad():
        s["old_logprobs"] = logprobs(module.policy, batch)
    s["ref_logprobs"] = world.token_logprobs(world.reference).flatten()
    values = module.critic.table.detach() if values is None else values
    s["old_values"] = values[world.before].flatten()
    rewards = rewards_with_kl(
        world.rewards, s["old_logprobs"], s["ref_logprobs"], s["loss_weights"], lengths, BETA
    )
    s["advantages"], s["returns"] = gae(
        rewards, s["old_values"], s["loss_weights"], lengths, 1.0, lam
    )
    if whitened:
        s["advantages"] = whiten(s["advantages"], s["loss_weights"])
    return batch


def exact_values(world: World, table: Tensor) -> Tensor:
    """[prefixes] expected reward to come, the KL of tokens to come taken off."""
    divergences = world.token_logprobs(table) - world.token_logprobs(world.reference)
    _, total = world.action_values(table, world.rewards - BETA * divergences.sum(1))
    # What was paid before a prefix is no part of its value.
    paid = torch.zeros_like(total)
    for t in range(1, world.length):
        paid[world.before[:, t]] = BETA * divergences[:, :t].sum(1)
    return total + paid


def penalised_reward(world: World, table: Tensor) -> Tensor:
    """`E[r] - beta KL(pi || ref)`, from the definition."""
    p = world.distribution(table)
    divergence = (p * (p.log() - world.distribution(world.reference).log())).sum()
    return (p * world.rewards).sum() - BETA * divergence


def tilted_reference(world: World) -> Tensor:
    """`pi_ref exp(r / beta)`, normalised."""
    return torch.softmax(world.distribution(world.reference).log() + world.rewards / BETA, 0)


PPO_SETTINGS = {
    "plain": (1.0, False, False),
    "whitened": (1.0, True, False),
    "exact values": (0.95, True, True),
}


@pytest.mark.parametrize("setting", PPO_SETTINGS)
def test_the_expected_gradient_of_ppo_is_that_of_the_penalised_reward(setting):
    lam, whitened, exact = PPO_SETTINGS[setting]
    world = World()
    module = tabular_actor_critic(world)
    values = exact_values(world, module.policy.log_table().detach()) if exact else None
    plain = ppo_batch(world, module, lam, False, values)
    weights = plain.streams["loss_weights"]
    scale = 1.0
    if whitened:
        x = plain.streams["advantages"]
        mean = (x * weights).sum() / weights.sum()
        scale = float((((x - mean) ** 2 * weights).sum() / weights.sum()).sqrt())
    batch = ppo_batch(world, module, lam, whitened, values)
    loss = PPO().sums(module, batch)[0]["policy"]
    (found,) = torch.autograd.grad(loss, module.policy.table)
    objective = penalised_reward(world, module.policy.log_table())
    (expected,) = torch.autograd.grad(objective, module.policy.table)
    torch.testing.assert_close(found * scale, -expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("setting", PPO_SETTINGS)
def test_ppo_ends_at_the_reference_tilted_by_the_reward(setting):
    lam, whitened, exact = PPO_SETTINGS[setting]
    world = World()
    module = tabular_actor_critic(world)
    target = tilted_reference(world)
    assert total_variation(world.distribution(module.policy.log_table()), target) > 0.3

    def step() -> Tensor:
        values = exact_values(world, module.policy.log_table().detach()) if exact else None
        batch = ppo_batch(world, module, lam, whitened, values)
        objective = PPO()
        return objective.sums(module, batch)[0]["policy"] / objective.counts(batch)["policy"]

    descend([module.policy.table], step, steps=300)
    assert total_variation(world.distribution(module.policy.log_table()), target) <= 0.02


def test_ppo_with_its_own_critic_ends_at_the_same_place():
    world = World()
    module = tabular_actor_critic(world)

    def step() -> Tensor:
        batch = ppo_batch(world, module, 0.95, True)
        objective = PPO(value_clip=0.2, value_coefficient=1.0)
        sums, counts = objective.sums(module, batch)[0], objective.counts(batch)
        return sum(sums[name] / counts[name] for name in sums)

    descend(list(module.parameters()), step, steps=500)
    found = world.distribution(module.policy.log_table())
    assert total_variation(found, tilted_reference(world)) <= 0.02


def test_the_value_loss_is_least_at_the_exact_values():
    world = World()
    module = tabular_actor_critic(world)
    exact = exact_values(world, module.policy.log_table().detach())

    def gradient(values: Tensor) -> Tensor:
        with torch.no_grad():
            module.critic.table.copy_(values)
        batch = ppo_batch(world, module, 1.0, True)
        loss = PPO(value_coefficient=1.0).sums(module, batch)[0]["value"]
        return torch.autograd.grad(loss, module.critic.table)[0]

    assert gradient(exact).abs().max() < 1e-6
    assert gradient(exact + 0.1).abs().max() > 1e-3


def test_a_flipped_reward_ends_far_from_the_optimum():
    world = World()
    module = tabular_actor_critic(world)
    target = tilted_reference(world)
    world.rewards = -world.rewards

    def step() -> Tensor:
        return PPO().sums(module, ppo_batch(world, module, 1.0, True))[0]["policy"]

    descend([module.policy.table], step, steps=150)
    assert total_variation(world.distribution(module.policy.log_table()), target) > 0.5


def grpo_batch(world: World, table: Tensor, advantages: Tensor) -> Batch:
    """Every sequence once, with its expected advantage; the surrogate is linear in it on-policy."""
    batch = world.batch(world.distribution(table))
    s = batch.streams
    s["old_logprobs"] = world.token_logprobs(table).flatten()
    s["ref_logprobs"] = world.token_logprobs(world.reference).flatten()
    s["advantages"] = spread(advantages, batch.lengths, s["loss_weights"])
    return batch


def trained_with_grpo(world: World, size: int, scale_by_std: bool, seed: int = 1, steps: int = 300):
    """The policy where training ends: log table and expected advantages there."""
    policy = tabular_actor_critic(world, seed).policy
    members, advantages = group_table(world, size, scale_by_std)
    objective = GRPO(kl_coefficient=BETA)

    def expected(table: Tensor) -> Tensor:
        return expected_advantages(world.distribution(table), members, advantages)

    def step() -> Tensor:
        table = policy.log_table().detach()
        return objective.sums(policy, grpo_batch(world, table, expected(table)))[0]["policy"]

    descend([policy.table], step, steps)
    table = policy.log_table().detach()
    return table, expected(table)


def grpo_fixed_point(world: World, size: int) -> Tensor:
    """Log table of `pi_ref / (1 - (1 - 1/G)(Q - V) / beta)`, of Q under the result."""
    return backwards(world, lambda ref, q: reciprocal(ref, q, BETA / (1 - 1 / size)))


def test_grpo_without_std_ends_at_its_closed_form():
    world = World()
    target = world.distribution(grpo_fixed_point(world, 2))
    assert total_variation(target, world.distribution(world.reference)) > 0.1
    table, _ = trained_with_grpo(world, 2, scale_by_std=False)
    assert total_variation(world.distribution(table), target) <= 0.02


def test_the_expected_gradient_of_grpo_without_std_is_exact():
    world = World()
    policy = tabular_actor_critic(world).policy
    members, advantages = group_table(world, 2, scale_by_std=False)
    table = policy.log_table().detach()
    found = expected_advantages(world.distribution(table), members, advantages)
    loss = GRPO(kl_coefficient=BETA).sums(policy, grpo_batch(world, table, found))[0]["policy"]
    (gradient,) = torch.autograd.grad(loss, policy.table)

    now = policy.log_table()
    visits = torch.zeros(world.prefixes, dtype=torch.float64)
    visits.index_add_(
        0,
        world.before.flatten(),
        world.distribution(table).repeat_interleave(world.length),
    )
    reverse = (world.reference.exp() * (world.reference - now)).sum(1)
    reward = (world.distribution(now) * world.rewards).sum()
    exact = (-(1 - 1 / 2) * reward + BETA * (visits * reverse).sum()) / world.length
    (expected,) = torch.autograd.grad(exact, policy.table)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def listed_gradient(world: World, table: Tensor, size: int) -> Tensor:
    """Expected gradient of GRPO with std, group by group from its definition, [prefixes, vocab]."""
    p, rewards = world.distribution(table), world.rewards
    count = len(p)
    members = torch.cartesian_prod(*[torch.arange(count)] * size)
    r = rewards[members]
    advantage = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)
    weight = p[members].prod(1)
    free = table.clone().requires_grad_()
    now = free.log_softmax(-1)
    of_sequences = world.token_logprobs(now).sum(1)
    gain = (weight[:, None] * advantage * of_sequences[members]).sum() / size
    d = world.token_logprobs(now) - world.token_logprobs(world.reference)
    penalty = (p[:, None] * (torch.exp(-d) - 1 + d)).sum()
    (gradient,) = torch.autograd.grad((BETA * penalty - gain) / world.length, free)
    return gradient


@pytest.mark.parametrize("vocabulary, length, size", [(8, 3, 2), (3, 2, 4)])
def test_grpo_with_std_ends_where_its_expected_gradient_vanishes(vocabulary, length, size):
    world = World(vocabulary, length)
    start = tabular_actor_critic(world).policy.log_table().detach()
    assert listed_gradient(world, start, size).abs().max() > 1e-2
    table, advantages = trained_with_grpo(world, size, scale_by_std=True, steps=800)
    assert listed_gradient(world, table, size).abs().max() < 1e-5
    # The same, said as a policy: per prefix pi_ref / (1 - (Q - V) / beta), Q of the advantages.
    q, v = world.action_values(table, advantages)
    implied = (world.reference.exp() / (1 - (q - v[:, None]) / BETA)).log()
    found = world.distribution(table)
    assert total_variation(found, world.distribution(implied)) <= 0.02
    again, _ = trained_with_grpo(world, size, scale_by_std=True, seed=2)
    assert total_variation(found, world.distribution(again)) <= 0.02


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_groups_listed_one_by_one_give_the_expected_gradient(scale_by_std):
    world, size = World(3, 2), 3
    policy = tabular_actor_critic(world).policy
    table = policy.log_table().detach()
    p = world.distribution(table)
    members, advantages = group_table(world, size, scale_by_std)
    objective = GRPO(kl_coefficient=BETA)
    once = grpo_batch(world, table, expected_advantages(p, members, advantages))
    (expected,) = torch.autograd.grad(objective.sums(policy, once)[0]["policy"], policy.table)

    copies = members.flatten()
    chance = p[members].prod(1).repeat_interleave(size)
    listed = world.batch(chance / size, copies)
    s = listed.streams
    s["old_logprobs"] = world.token_logprobs(table)[copies].flatten()
    s["ref_logprobs"] = world.token_logprobs(world.reference)[copies].flatten()
    s["advantages"] = spread(advantages.flatten(), listed.lengths, s["loss_weights"])
    (found,) = torch.autograd.grad(objective.sums(policy, listed)[0]["policy"], policy.table)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    if scale_by_std:
        torch.testing.assert_close(found, listed_gradient(world, table, size), rtol=0, atol=1e-6)
