"""Every algorithm's expected gradient, and where training with it ends, without sampling noise.

All sequences of a small world are listed, or all groups of them, each weighted by its probability;
advantages and losses are those that training uses. World of 512 sequences: vocabulary 8, length 3.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.objectives.algorithms import Algorithm, algorithm_of
from fourstage.objectives.correction import Correction
from fourstage.objectives.estimating import estimate
from fourstage.objectives.policy_gradient import PolicyGradient
from objectives_tables import (
    TabularPolicy,
    World,
    backwards,
    descend,
    reciprocal,
    tabular_actor_critic,
    tilted,
    total_variation,
)

BETA = 0.6
LONGEST = 5


def algorithm(name: str, beta: float = BETA, **changes) -> Algorithm:
    longest = {"constant_length": LONGEST} if name == "dr-grpo" else {}
    return algorithm_of(name, kl_coefficient=beta, **(longest | changes))


def policy_of(world: World, seed: int = 1) -> TabularPolicy:
    return tabular_actor_critic(world, seed).policy


def rollouts(world: World, table: Tensor, told: Algorithm, size: int = 1) -> Batch:
    """All ordered groups of `size` sequences as a rollout of the policy `table`, scored.

    A document's weight is the probability of its group by the size of it, so sums are expectations
    of a mean over responses.
    """
    count = len(world.rewards)
    members = torch.cartesian_prod(*[torch.arange(count)] * size).view(-1, size)
    chance = world.distribution(table)[members].prod(1) / size
    copies = members.flatten()
    batch = world.batch(chance.repeat_interleave(size), copies)
    streams = batch.streams
    streams["old_logprobs"] = world.token_logprobs(table)[copies].flatten()
    streams["ref_logprobs"] = world.token_logprobs(world.reference)[copies].flatten()
    drawn = torch.Generator().manual_seed(9)
    values = torch.randn(world.prefixes, generator=drawn, dtype=torch.float64)
    streams["old_values"] = values[world.before[copies]].flatten()
    prompts = torch.arange(len(members)).repeat_interleave(size)
    # With lambda 1 any values are right, also those of a critic that knows nothing.
    streams |= estimate(told, batch, world.rewards[copies], prompts, lam=1.0)
    return batch


def expected_loss(policy: TabularPolicy, told: Algorithm, batch: Batch, **more) -> Tensor:
    """The loss of a step of infinitely many responses."""
    # The critic's part is proven elsewhere.
    told = replace(told, advantage="group") if told.needs_critic else told
    count = {"token_mean": policy.world.length, "constant": LONGEST}.get(told.aggregation, 1)
    return PolicyGradient(told, **more).sums(policy, batch)[0]["policy"] / count


def gradient_of(value: Tensor, policy: TabularPolicy) -> Tensor:
    return torch.autograd.grad(value, policy.table)[0]


def expected_gradient(policy: TabularPolicy, told: Algorithm, size: int = 1) -> Tensor:
    batch = rollouts(policy.world, policy.log_table().detach(), told, size)
    return gradient_of(expected_loss(policy, told, batch), policy)


def trained(
    world: World, told: Algorithm, size: int = 1, steps: int = 300, seed: int = 1
) -> Tensor:
    """The log table where training with expected gradients ends."""
    policy = policy_of(world, seed)

    def step() -> Tensor:
        batch = rollouts(world, policy.log_table().detach(), told, size)
        return expected_loss(policy, told, batch)

    descend([policy.table], step, steps)
    return policy.log_table().detach()


def reward(policy: TabularPolicy) -> Tensor:
    return (policy.world.distribution(policy.log_table()) * policy.world.rewards).sum()


def divergence(policy: TabularPolicy, turned: bool = False) -> Tensor:
    """KL(policy || reference) of whole sequences, or the other way round."""
    now = policy.world.token_logprobs(policy.log_table()).sum(1)
    ref = policy.world.token_logprobs(policy.world.reference).sum(1)
    return (ref.exp() * (ref - now)).sum() if turned else (now.exp() * (now - ref)).sum()


def divergence_by_prefix(policy: TabularPolicy, turned: bool = False) -> Tensor:
    """The same of each prefix, weighted by visits that count as given."""
    world, now = policy.world, policy.log_table()
    visits = torch.zeros(world.prefixes, dtype=torch.float64)
    chance = world.distribution(now.detach()).repeat_interleave(world.length)
    visits.index_add_(0, world.before.flatten(), chance)
    ref = world.reference
    rows = ref.exp() * (ref - now) if turned else now.exp() * (now - ref)
    return (visits * rows.sum(1)).sum()


# By what the gradient of a whole response is divided.
DIVISORS = {"dr-grpo": LONGEST, "rloo": 1, "reinforce": 1}


@pytest.mark.parametrize(
    "name, size, vocabulary, length",
    [
        ("ppo", 1, 8, 3),
        ("reinforce", 1, 8, 3),
        ("rloo", 2, 4, 2),
        ("rloo", 3, 4, 2),
        ("dr-grpo", 2, 4, 2),
        ("dr-grpo", 3, 4, 2),
    ],
)
def test_the_expected_gradient_is_that_of_the_penalised_reward(name, size, vocabulary, length):
    world = World(vocabulary, length)
    policy = policy_of(world)
    told = algorithm(name, kl="reward", kl_estimator="k1", scale="none")
    # A mean that includes the response itself takes off its share.
    share = 1 - 1 / size if name == "dr-grpo" else 1.0
    penalised = reward(policy) - BETA * divergence(policy)
    expected = -share * gradient_of(penalised, policy) / DIVISORS.get(name, length)
    torch.testing.assert_close(expected_gradient(policy, told, size), expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-2


# Of d = log(policy / reference), as they stand in the reward of each token.
IN_THE_REWARD = {"k2": lambda d: d.square() / 2, "k3": lambda d: (-d).exp() - 1 + d}


@pytest.mark.parametrize("estimator", IN_THE_REWARD)
@pytest.mark.parametrize("name, size, vocabulary", [("ppo", 1, 8), ("rloo", 2, 3)])
def test_another_estimator_in_the_reward_is_a_reward_like_any_other(
    estimator, name, size, vocabulary
):
    """No divergence has this gradient: the penalty counts as it stands, and none flows through."""
    world = World(vocabulary, 2)
    policy = policy_of(world)
    told = algorithm(name, kl="reward", kl_estimator=estimator, scale="none")
    now = world.token_logprobs(policy.log_table())
    distance = (now - world.token_logprobs(world.reference)).detach()
    worth = world.rewards - BETA * IN_THE_REWARD[estimator](distance).sum(1)
    expected = -gradient_of((now.sum(1).exp() * worth).sum(), policy) / DIVISORS.get(name, 2)
    torch.testing.assert_close(expected_gradient(policy, told, size), expected, rtol=0, atol=1e-6)
    other = expected_gradient(policy, replace(told, kl_estimator="k1"), size)
    assert (other - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name, size", [("ppo", 1), ("reinforce++", 1), ("reinforce++-baseline", 2)]
)
def test_whitening_scales_the_expected_gradient_and_no_more(name, size):
    world = World(4, 2)
    policy = policy_of(world)
    told = algorithm(name, kl="reward", kl_estimator="k1")
    plain = rollouts(world, policy.log_table().detach(), replace(told, scale="none"), size)
    values, weights = plain.streams["advantages"], plain.streams["loss_weights"]
    mean = (values * weights).sum() / weights.sum()
    deviation = float((((values - mean) ** 2 * weights).sum() / weights.sum()).sqrt())
    share = 1 - 1 / size if size > 1 else 1.0
    worth = share * reward(policy) - BETA * divergence(policy)
    expected = -gradient_of(worth, policy) / world.length / deviation
    torch.testing.assert_close(expected_gradient(policy, told, size), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo"])
@pytest.mark.parametrize("vocabulary, length, size", [(3, 2, 4), (4, 2, 3)])
def test_with_std_the_expected_gradient_is_that_of_all_groups_listed(
    name, vocabulary, length, size
):
    world = World(vocabulary, length)
    policy = policy_of(world)
    now = policy.log_table()
    p, r = world.distribution(now).detach(), world.rewards
    members = torch.cartesian_prod(*[torch.arange(len(p))] * size)
    of_groups = r[members]
    centred = of_groups - of_groups.mean(1, keepdim=True)
    advantage = centred / (of_groups.std(1, keepdim=True) + 1e-4)
    logprobs = world.token_logprobs(now).sum(1)
    gain = (p[members].prod(1)[:, None] * advantage * logprobs[members]).sum() / size
    expected = -gradient_of(gain, policy) / length
    found = expected_gradient(policy, algorithm(name, 0.0), size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-2


# (estimator, summed, weighted) -> the divergence whose gradient it has.
PLACEMENTS = {
    ("k1", False, False): lambda policy: 0 * divergence(policy),
    ("k1", True, False): lambda policy: 0 * divergence(policy),
    ("k2", False, False): divergence_by_prefix,
    ("k2", True, False): divergence,
    ("k3", False, False): lambda policy: divergence_by_prefix(policy, turned=True),
    ("k3", True, False): lambda policy: divergence(policy, turned=True),
    ("k1", False, True): divergence_by_prefix,
    ("k1", True, True): divergence,
    ("k3", False, True): divergence_by_prefix,
    ("k3", True, True): divergence,
}


def in_loss(placement: tuple, name: str = "reinforce", beta: float = BETA) -> Algorithm:
    estimator, summed, weighted = placement
    return algorithm(
        name, beta, kl="loss", kl_estimator=estimator, kl_summed=summed, kl_weighted=weighted
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_kl_in_the_loss_has_the_gradient_of_its_own_divergence(placement):
    policy = policy_of(World())
    worth = reward(policy) - BETA * PLACEMENTS[placement](policy)
    expected = -gradient_of(worth, policy)
    found = expected_gradient(policy, in_loss(placement))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def of_sequences(world: World, respond) -> Tensor:
    """A distribution over whole sequences from their reference and rewards."""
    ref = world.distribution(world.reference).log()
    return respond(ref[None], world.rewards[None])[0].exp()


def of_prefixes(world: World, respond) -> Tensor:
    return world.distribution(backwards(world, respond))


def tilt(ref: Tensor, q: Tensor) -> Tensor:
    return tilted(ref, q, BETA)


FIXED_POINTS = {
    ("k2", False, False): (of_prefixes, tilt),
    ("k2", True, False): (of_sequences, tilt),
    ("k3", False, False): (of_prefixes, lambda ref, q: reciprocal(ref, q, BETA)),
    ("k3", True, False): (of_sequences, lambda ref, q: reciprocal(ref, q, BETA)),
    ("k3", False, True): (of_prefixes, tilt),
    ("k3", True, True): (of_sequences, tilt),
}


@pytest.mark.parametrize("placement", FIXED_POINTS)
def test_training_with_a_kl_in_the_loss_ends_at_its_closed_form(placement):
    world = World()
    over, respond = FIXED_POINTS[placement]
    target = over(world, respond)
    assert total_variation(target, world.distribution(world.reference)) > 0.2
    # Near its pole, what is left of a reciprocal settles slowly.
    steps = 600 if placement == ("k3", True, False) else 200
    found = world.distribution(trained(world, in_loss(placement), steps=steps))
    assert total_variation(found, target) <= 0.02


def test_the_closed_forms_are_not_the_same():
    world = World()
    found = [over(world, respond) for over, respond in FIXED_POINTS.values()][:4]
    for i, first in enumerate(found):
        for second in found[i + 1 :]:
            assert total_variation(first, second) > 0.05


@pytest.mark.parametrize(
    "name, size, vocabulary, length",
    [("ppo", 1, 8, 3), ("reinforce", 1, 8, 3), ("reinforce++", 1, 8, 3), ("rloo", 2, 4, 2)],
)
def test_with_the_kl_in_the_reward_training_ends_at_the_tilted_reference(
    name, size, vocabulary, length
):
    world = World(vocabulary, length)
    target = of_sequences(world, tilt)
    found = world.distribution(trained(world, algorithm(name), size, steps=200))
    assert total_variation(found, target) <= 0.02


@pytest.mark.parametrize("size, vocabulary", [(2, 4), (3, 3)])
def test_a_mean_that_includes_the_response_tilts_less(size, vocabulary):
    world = World(vocabulary, 2)
    told = in_loss(("k2", True, False), "dr-grpo")
    target = of_sequences(world, lambda ref, q: tilted(ref, q, BETA / (1 - 1 / size)))
    assert total_variation(target, of_sequences(world, tilt)) > 0.05
    found = world.distribution(trained(world, told, size, steps=150))
    assert total_variation(found, target) <= 0.02


def test_whitening_before_a_kl_in_the_loss_stretches_its_coefficient():
    """REINFORCE++ with baseline: beta counts against rewards in units of their deviation."""
    world, size = World(4, 2), 2
    told = algorithm("reinforce++-baseline")
    assert (told.kl, told.kl_estimator, told.kl_summed) == ("loss", "k2", False)
    table = trained(world, told, size)
    plain = rollouts(world, table, replace(told, scale="none"), size).streams
    weights, values = plain["loss_weights"], plain["advantages"]
    deviation = ((values**2 * weights).sum() / weights.sum()).sqrt()
    beta = float(BETA * deviation / (1 - 1 / size))
    target = of_prefixes(world, lambda ref, q: tilted(ref, q, beta))
    assert abs(beta - BETA) > 0.1
    assert total_variation(world.distribution(table), target) <= 0.02


@pytest.mark.parametrize("name", ["grpo", "gspo", "dapo", "cispo"])
def test_with_std_training_ends_where_the_expected_gradient_vanishes(name):
    world = World(3, 2)
    told = in_loss(("k3", False, False), name)
    table = trained(world, told, size=2)
    gradient = expected_gradient(TabularPolicy(world, table), told, size=2)
    assert gradient.abs().max() < 1e-5
    assert expected_gradient(policy_of(world), told, size=2).abs().max() > 1e-2
    again = trained(world, told, size=2, seed=2)
    assert total_variation(world.distribution(table), world.distribution(again)) <= 0.02


@pytest.mark.parametrize(
    "name, size",
    [
        ("ppo", 1),
        ("reinforce", 1),
        ("reinforce++", 1),
        *((name, 2) for name in ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "rloo")),
        ("reinforce++-baseline", 2),
    ],
)
def test_without_a_kl_all_goes_to_the_best_sequence(name, size):
    world = World(4, 2)
    table = trained(world, algorithm(name, 0.0), size, steps=150)
    assert world.distribution(table)[world.rewards.argmax()] >= 0.95


@pytest.mark.parametrize("surrogate", ["plain", "clipped"])
def test_ratios_of_whole_responses_are_right_off_policy(surrogate):
    """`E_old[rho A]` is the reward under the policy now; a clip out of reach changes nothing."""
    world = World()
    old, policy = policy_of(world).log_table().detach(), policy_of(world, seed=2)
    wide = {"clip_low": 1.0, "clip_high": 1e9} if surrogate == "clipped" else {}
    told = algorithm("rloo", 0.0, advantage="group", surrogate=surrogate, scale="none", **wide)
    batch = rollouts(world, old, replace(told, advantage="rewards_to_go", ratio="token"))
    found = gradient_of(expected_loss(policy, told, batch), policy)
    torch.testing.assert_close(found, -gradient_of(reward(policy), policy), rtol=0, atol=1e-6)


def test_weights_of_whole_responses_make_up_for_another_sampler():
    """Responses drawn by another policy, weighted, have the expected gradient of the trainer's."""
    world = World()
    policy, sampler = policy_of(world), policy_of(world, seed=2).log_table().detach()
    told = algorithm("reinforce", 0.0)
    table = policy.log_table().detach()
    own = rollouts(world, table, told)
    expected = gradient_of(expected_loss(policy, told, own), policy)
    drawn = rollouts(world, table, told)
    other = world.distribution(sampler).repeat_interleave(world.length)
    drawn.streams["rollout_logprobs"] = world.token_logprobs(sampler).flatten()
    drawn.streams["loss_weights"] = other
    correction = Correction("truncate", "sequence", 0.0, 1e9)
    found = gradient_of(expected_loss(policy, told, drawn, correction=correction), policy)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    without = gradient_of(expected_loss(policy, told, drawn), policy)
    assert (without - expected).abs().max() > 1e-2
