"""Best-of-n distillation and expert iteration: the gradient of all groups, and where they end."""

from __future__ import annotations

import torch
from torch import Tensor

from fourstage.objectives.next_token import NextToken
from fourstage.stages.distilling import the_best
from objectives_tables import TabularPolicy, World, descend, tabular_actor_critic, total_variation

SIZE = 3


def chances_to_be_kept(world: World, chance: Tensor) -> Tensor:
    """[sequences] how often each is kept of groups of `SIZE`, all of which are listed."""
    members = torch.cartesian_prod(*[torch.arange(len(chance))] * SIZE).flatten()
    kept = torch.tensor(the_best(world.rewards[members], SIZE, 1, None))
    weight = chance[members.view(-1, SIZE)].prod(1)[kept // SIZE]
    return torch.zeros_like(chance).index_add(0, members[kept], weight)


def best_of_n(world: World, chance: Tensor) -> Tensor:
    """The closed form: the highest of n draws, less groups in which all are the same sequence."""
    order = world.rewards.argsort()
    below = torch.zeros_like(chance)
    below[order] = chance[order].cumsum(0) - chance[order]
    kept = (below + chance) ** SIZE - below**SIZE - chance**SIZE
    return kept / kept.sum()


def imitated(policy: TabularPolicy, weights: Tensor) -> Tensor:
    """The loss of a step in which each sequence stands as often as its weight says."""
    return NextToken(0.0).sums(policy, policy.world.batch(weights))[0]["tokens"]


def trained(world: World, keeps, steps: int) -> Tensor:
    """[sequences] probabilities in the end; `keeps(table)` says what a step imitates."""
    policy = tabular_actor_critic(world).policy
    descend([policy.table], lambda: imitated(policy, keeps(policy.log_table().detach())), steps)
    return world.distribution(policy.log_table()).detach()


def test_the_best_of_all_groups_are_those_of_the_closed_form():
    world = World(4, 2)
    chance = world.distribution(world.reference)
    kept = chances_to_be_kept(world, chance)
    torch.testing.assert_close(kept / kept.sum(), best_of_n(world, chance), rtol=0, atol=1e-12)
    assert total_variation(kept / kept.sum(), chance) > 0.2
    wrong = World(4, 2)
    wrong.rewards = -wrong.rewards
    assert total_variation(kept / kept.sum(), best_of_n(wrong, chance)) > 0.2


def test_the_gradient_is_that_of_the_cross_entropy_to_the_best_of_n():
    world = World(4, 2)
    policy = tabular_actor_critic(world).policy
    target = best_of_n(world, world.distribution(world.reference))
    kept = chances_to_be_kept(world, world.distribution(world.reference))
    found = torch.autograd.grad(imitated(policy, kept / kept.sum()), policy.table)[0]
    of_sequences = world.token_logprobs(policy.log_table()).sum(1)
    expected = torch.autograd.grad(-(target * of_sequences).sum(), policy.table)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-2


def test_distillation_ends_at_the_best_of_n_of_the_reference():
    world = World(4, 2)
    chance = world.distribution(world.reference)
    kept = chances_to_be_kept(world, chance)
    found = trained(world, lambda table: kept, steps=300)
    assert total_variation(found, best_of_n(world, chance)) <= 0.02


def test_rounds_from_the_policy_put_all_on_the_best_sequence():
    world = World(3, 2)

    def keeps(table: Tensor) -> Tensor:
        kept = chances_to_be_kept(world, world.distribution(table))
        return kept / kept.sum()

    found = trained(world, keeps, steps=100)
    assert found[world.rewards.argmax()] >= 0.95


def test_a_bar_ends_at_the_reference_among_what_reaches_it():
    """With one response to a prompt, what reaches the bar counts by its own chance."""
    world = World(4, 2)
    bar = float(world.rewards.median())
    kept = world.distribution(world.reference)
    below = torch.ones_like(kept, dtype=torch.bool)
    below[the_best(world.rewards, 1, 1, bar)] = False
    assert torch.equal(below, world.rewards < bar) and below.any()
    kept = kept.masked_fill(below, 0.0)
    found = trained(world, lambda table: kept, steps=300)
    assert total_variation(found, kept / kept.sum()) <= 0.02
