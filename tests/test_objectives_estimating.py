"""Advantages of every algorithm against plain loops over groups, responses and tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fourstage.errors import InputError
from fourstage.objectives.advantages import (
    dead_groups,
    group_advantages,
    leave_one_out_advantages,
    overlong_penalties,
)
from fourstage.objectives.algorithms import ALGORITHMS, algorithm_of
from fourstage.objectives.estimating import estimate
from objectives_support import rollout_batch

DOCUMENTS = 8
PROMPTS = torch.tensor([3, 1, 3, 1, 1, 3, 7, 7])
BETA = 0.3


def scores(seed: int = 5) -> Tensor:
    return torch.randn(
        DOCUMENTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def algorithm(name: str, **changes):
    longest = {"constant_length": 12} if name == "dr-grpo" else {}
    return algorithm_of(name, **(longest | changes))


def split(batch, stream: Tensor) -> list[Tensor]:
    """Of each document what its trained cells hold."""
    parts = zip(
        stream.split(batch.lengths),
        batch.streams["loss_weights"].split(batch.lengths),
        strict=True,
    )
    return [values[weights != 0] for values, weights in parts]


def divergences(batch) -> list[Tensor]:
    return split(batch, batch.streams["old_logprobs"] - batch.streams["ref_logprobs"])


def members(index: int) -> list[int]:
    return [other for other in range(DOCUMENTS) if PROMPTS[other] == PROMPTS[index]]


def mean_of(values: list) -> Tensor:
    return sum(values) / len(values)


def deviation_of(values: list) -> Tensor:
    """Divided by n - 1."""
    mean = mean_of(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def whole_rewards(batch, beta: float) -> list[Tensor]:
    told = zip(scores(), divergences(batch), strict=True)
    return [score - beta * sum(d) for score, d in told]


def rewards_to_go(batch, beta: float, worth: list[Tensor]) -> list[Tensor]:
    """Of each token: the price of those from it on, and the score behind them."""
    found = []
    for score, d in zip(worth, divergences(batch), strict=True):
        found.append(torch.stack([score - beta * sum(d[t:]) for t in range(len(d))]))
    return found


def whitened(values: list[Tensor]) -> list[Tensor]:
    every = [value for tokens in values for value in tokens]
    mean = mean_of(every)
    variance = mean_of([(value - mean) ** 2 for value in every])
    return [(tokens - mean) / (variance + 1e-8) ** 0.5 for tokens in values]


def on_tokens(batch, values: list[Tensor]) -> list[Tensor]:
    found = zip(values, divergences(batch), strict=True)
    return [value.expand(len(d)) for value, d in found]


def group_relative(batch, beta: float, scaled: bool) -> list[Tensor]:
    rewards = whole_rewards(batch, beta)
    found = []
    for index, reward in enumerate(rewards):
        others = [rewards[other] for other in members(index)]
        centred = reward - mean_of(others)
        found.append(centred / (deviation_of(others) + 1e-4) if scaled else centred)
    return on_tokens(batch, found)


def leave_one_out(batch, beta: float) -> list[Tensor]:
    rewards = whole_rewards(batch, beta)
    found = []
    for index, reward in enumerate(rewards):
        others = [rewards[other] for other in members(index) if other != index]
        found.append(reward - mean_of(others))
    return on_tokens(batch, found)


def reinforce(batch, beta: float) -> list[Tensor]:
    to_go = rewards_to_go(batch, beta, list(scores()))
    mean = mean_of([value for tokens in to_go for value in tokens])
    return [tokens - mean for tokens in to_go]


def reinforce_plus_plus(batch, beta: float) -> list[Tensor]:
    return whitened(rewards_to_go(batch, beta, list(scores())))


def with_baseline(batch, beta: float) -> list[Tensor]:
    worth = [
        score - mean_of([scores()[other] for other in members(index)])
        for index, score in enumerate(scores())
    ]
    return whitened(rewards_to_go(batch, beta, worth))


FORMULAS = {
    "grpo": lambda batch, beta: group_relative(batch, beta, scaled=True),
    "dr-grpo": lambda batch, beta: group_relative(batch, beta, scaled=False),
    "dapo": lambda batch, beta: group_relative(batch, beta, scaled=True),
    "gspo": lambda batch, beta: group_relative(batch, beta, scaled=True),
    "cispo": lambda batch, beta: group_relative(batch, beta, scaled=True),
    "rloo": leave_one_out,
    "reinforce": reinforce,
    "reinforce++": reinforce_plus_plus,
    "reinforce++-baseline": with_baseline,
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kl", ["reward", "loss"])
def test_advantages_equal_a_loop_over_their_formula(name, kl):
    batch = rollout_batch(DOCUMENTS)
    estimator = "k1" if kl == "reward" else "k2"
    told = algorithm(name, kl=kl, kl_estimator=estimator, kl_coefficient=BETA)
    found = estimate(told, batch, scores(), PROMPTS)
    assert set(found) == {"advantages"}
    expected = FORMULAS[name](batch, BETA if kl == "reward" else 0.0)
    for ours, plain in zip(split(batch, found["advantages"]), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)
    assert not found["advantages"][batch.streams["loss_weights"] == 0].any()


def test_every_algorithm_has_a_formula_here_or_is_ppo():
    assert set(ALGORITHMS) == {*FORMULAS, "ppo"}


def test_advantages_of_ppo_are_those_of_the_critic():
    batch = rollout_batch(DOCUMENTS)
    found = estimate(algorithm("ppo"), batch, scores(), PROMPTS, BETA, gamma=0.9, lam=0.8)
    expected, returns = [], []
    for score, d, v in zip(
        scores(), divergences(batch), split(batch, batch.streams["old_values"]), strict=True
    ):
        rewards = [-BETA * x for x in d]
        rewards[-1] = rewards[-1] + score
        running, ahead, column = 0.0, 0.0, []
        for reward, value in zip(reversed(rewards), reversed(v), strict=True):
            running = reward + 0.9 * ahead - value + 0.9 * 0.8 * running
            ahead = value
            column.append(running)
        expected.append(torch.stack(column[::-1]))
        returns.append(expected[-1] + v)
    for name, wanted in (("advantages", whitened(expected)), ("returns", returns)):
        for ours, plain in zip(split(batch, found[name]), wanted, strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce++"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_other_estimators_of_the_kl_can_be_paid_too(name, estimator):
    batch = rollout_batch(DOCUMENTS)
    told = algorithm(name, kl="reward", kl_estimator=estimator, kl_coefficient=BETA)
    found = estimate(told, batch, scores(), PROMPTS)["advantages"]
    d = batch.streams["old_logprobs"] - batch.streams["ref_logprobs"]
    values = d**2 / 2 if estimator == "k2" else torch.exp(-d) - 1 + d
    # The same as k1 of a reference that is as far away.
    batch.streams["ref_logprobs"] = batch.streams["old_logprobs"] - values
    told = algorithm(name, kl="reward", kl_estimator="k1", kl_coefficient=BETA)
    expected = estimate(told, batch, scores(), PROMPTS)["advantages"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_batch_deviation_is_of_the_rewards_of_all_groups():
    batch = rollout_batch(DOCUMENTS)
    found = estimate(algorithm("dapo", scale="batch"), batch, scores(), PROMPTS)
    plain = estimate(algorithm("dapo", scale="none"), batch, scores(), PROMPTS)
    expected = plain["advantages"] / (deviation_of(list(scores())) + 1e-4)
    torch.testing.assert_close(found["advantages"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_constant_reward_moves_nothing(name):
    batch = rollout_batch(DOCUMENTS)
    told = algorithm(name, kl_coefficient=0.0)
    found = estimate(told, batch, torch.full((DOCUMENTS,), 0.7, dtype=torch.double), PROMPTS)
    assert found["advantages"].abs().max() < 1e-9


def test_leave_one_out_is_the_group_mean_stretched():
    found = leave_one_out_advantages(scores(), PROMPTS)
    centred = group_advantages(scores(), PROMPTS, scale_by_std=False)
    sizes = torch.tensor([len(members(index)) for index in range(DOCUMENTS)])
    torch.testing.assert_close(found, centred * sizes / (sizes - 1), rtol=0, atol=1e-12)
    assert leave_one_out_advantages(torch.ones(1), torch.zeros(1)).tolist() == [0.0]


def test_dead_groups_are_those_of_equal_rewards():
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    assert dead_groups(rewards, PROMPTS).tolist() == [True] * 6 + [False] * 2
    rewards[2] += 1e-7
    assert dead_groups(rewards, PROMPTS)[0], "rounding makes no group alive"
    rewards[2] = -5.0
    assert dead_groups(rewards, PROMPTS).tolist()[:3] == [False, True, False]
    live = group_advantages(rewards, PROMPTS).abs() > 1e-3
    assert not (live & dead_groups(rewards, PROMPTS)).any()


def test_overlong_responses_lose_a_line_of_reward_down_to_one():
    tokens = torch.tensor([0, 80, 85, 90, 100, 130])
    expected = [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert overlong_penalties(tokens, longest=100, buffer=20).tolist() == expected
    with pytest.raises(ValueError, match="buffer"):
        overlong_penalties(tokens, longest=100, buffer=0)


def test_what_an_algorithm_lacks_is_said():
    batch = rollout_batch(DOCUMENTS)
    with pytest.raises(InputError, match="write group=8"):
        estimate(algorithm("rloo"), batch, scores(), torch.arange(DOCUMENTS))
    del batch.streams["ref_logprobs"], batch.streams["old_values"]
    with pytest.raises(InputError, match="ref_logprobs"):
        estimate(algorithm("rloo"), batch, scores(), PROMPTS)
    estimate(algorithm("rloo", kl_coefficient=0.0), batch, scores(), PROMPTS)
    with pytest.raises(InputError, match="old_values"):
        estimate(algorithm("ppo"), batch, scores(), PROMPTS)
