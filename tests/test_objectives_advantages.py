"""Rewards, advantages, whitening and KL against plain loops; log-probabilities by chunks."""

from __future__ import annotations

import math

import pytest
import torch

from fourstage.objectives import logprobs as logprobs_module
from fourstage.objectives.advantages import (
    explained_variance,
    gae,
    group_advantages,
    rewards_with_kl,
    spread,
    whiten,
)
from fourstage.objectives.kl import AdaptiveKL, k1, k2, k3
from fourstage.objectives.logprobs import (
    logprobs,
    token_logprobs,
    token_logprobs_and_entropies,
)
from objectives_support import language_batch, tiny_model

LENGTHS = (6, 3, 9, 1, 5)
# Prompts of different length, and a response interrupted by cells that are not trained.
WEIGHTS = torch.tensor(
    [0, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]
).double()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained_indices() -> list[list[int]]:
    """For each document the flat indices of its trained cells."""
    found, start = [], 0
    for length in LENGTHS:
        found.append([i for i in range(start, start + length) if WEIGHTS[i]])
        start += length
    return found


def test_rewards_put_the_kl_on_every_token_and_the_score_on_the_last():
    now, ref, scores = drawn(24), drawn(24, seed=1), drawn(5, seed=2)
    found = rewards_with_kl(scores, now, ref, WEIGHTS, LENGTHS, 0.1)
    expected = torch.zeros(24).double()
    for document, cells in enumerate(trained_indices()):
        for i in cells:
            expected[i] = -0.1 * (now[i] - ref[i])
        expected[cells[-1]] += scores[document]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_a_document_without_a_response_is_refused():
    with pytest.raises(ValueError, match="document 1 has no trained cell"):
        zeros = torch.zeros(3)
        rewards_with_kl(torch.ones(2), zeros, zeros, torch.tensor([1.0, 1.0, 0.0]), (2, 1), 0.1)


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_a_loop_over_tokens(gamma, lam):
    rewards, values = drawn(24), drawn(24, seed=1)
    advantages, returns = gae(rewards, values, WEIGHTS, LENGTHS, gamma, lam)
    expected = torch.zeros(24).double()
    expected_returns = torch.zeros(24).double()
    for cells in trained_indices():
        running, next_value = 0.0, 0.0
        for i in reversed(cells):
            delta = rewards[i] + gamma * next_value - values[i]
            running = delta + gamma * lam * running
            expected[i], expected_returns[i] = running, running + values[i]
            next_value = values[i]
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, expected_returns, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_uses_trained_cells_alone(shift_mean):
    values = drawn(24)
    chosen = values[WEIGHTS != 0]
    mean, variance = chosen.mean(), chosen.var(correction=0)
    expected = (values - mean) / (variance + 1e-8).sqrt() + (0 if shift_mean else mean)
    found = whiten(values, WEIGHTS, shift_mean)
    torch.testing.assert_close(found, expected * WEIGHTS, rtol=0, atol=1e-12)


def test_whitening_over_two_ranks_equals_whitening_at_once():
    values = drawn(24)
    parts = [slice(0, 9), slice(9, 24)]

    def on_rank(rank: int) -> torch.Tensor:
        """The rank's part; `reduce` adds what the other rank would have sent."""
        mine, others = parts[rank], parts[1 - rank]
        mean = (values * WEIGHTS).sum() / WEIGHTS.sum()
        w, x = WEIGHTS[others], values[others]
        sent = iter([torch.stack([w.sum(), (x * w).sum()]), ((x - mean) ** 2 * w).sum()[None]])
        return whiten(values[mine], WEIGHTS[mine], reduce=lambda sums: sums + next(sent))

    torch.testing.assert_close(
        torch.cat([on_rank(0), on_rank(1)]), whiten(values, WEIGHTS), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("scale", [True, False])
def test_group_advantages_equal_a_loop_over_groups_of_any_size_and_order(scale):
    rewards, group = drawn(9), torch.tensor([7, 2, 7, 2, 2, -1, 7, 7, 5])
    found = group_advantages(rewards, group, scale)
    for i in range(9):
        members = rewards[group == group[i]]
        std = members.std(correction=1) if len(members) > 1 else 0.0
        expected = (rewards[i] - members.mean()) / ((std + 1e-4) if scale else 1.0)
        assert found[i].item() == pytest.approx(float(expected), abs=1e-12)


def test_equal_rewards_have_no_advantage():
    assert not group_advantages(torch.full((4,), 0.3), torch.zeros(4)).any()


def test_an_advantage_spreads_over_the_trained_cells_of_its_document():
    found = spread(torch.arange(1.0, 6.0), LENGTHS, WEIGHTS)
    for document, cells in enumerate(trained_indices()):
        assert (found[cells] == document + 1).all()
    assert not found[WEIGHTS == 0].any()


def test_explained_variance_is_one_for_perfect_values_and_zero_for_constant_ones():
    returns = drawn(24)
    assert explained_variance(returns + 3, returns, WEIGHTS) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(24), returns, WEIGHTS) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(24), WEIGHTS) == 0.0


def test_k3_of_a_token_that_the_policy_has_all_but_ruled_out_is_finite_and_costs_no_step():
    logprobs = torch.tensor([-200.0, -1.5], requires_grad=True)
    found = k3(logprobs, torch.tensor([-1.0, -1.0]))
    found.sum().backward()
    assert found.isfinite().all() and found[0] > 1e8
    assert logprobs.grad is not None and logprobs.grad.isfinite().all()
    assert logprobs.grad[1] == pytest.approx(1 - math.exp(0.5))


def test_k1_and_k3_estimate_the_kl_and_k2_its_gradient():
    policy = torch.log_softmax(drawn(8), -1).requires_grad_()
    reference = torch.log_softmax(drawn(8, seed=1), -1)
    weights = policy.detach().exp()
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in (k1, k3):
        estimate = (weights * estimator(policy, reference)).sum()
        assert estimate.item() == pytest.approx(exact.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(exact, policy)
    (of_k2,) = torch.autograd.grad((weights * k2(policy, reference)).sum(), policy)
    # They agree along every direction in which the probabilities still sum to one.
    difference = (gradient - of_k2) / weights
    torch.testing.assert_close(difference, difference.mean().expand(8), rtol=0, atol=1e-12)


def test_the_kl_coefficient_follows_its_target_and_survives_a_restart():
    kl = AdaptiveKL(0.1, target=6.0, horizon=1000)
    assert kl.update(60.0, 100) == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    before = kl.coefficient
    assert kl.update(5.4, 100) == pytest.approx(before * (1 - 0.1 * 0.1))
    again = AdaptiveKL(9.0, target=6.0, horizon=1000)
    again.restore(kl.state())
    assert again.update(0.0, 50) == kl.update(0.0, 50)
    assert AdaptiveKL(0.1).update(60.0, 100) == 0.1


@pytest.mark.parametrize("kept", [0, 2**27])
@pytest.mark.parametrize("budget", [1, 70 * 19, 2**19])
def test_logprobs_and_gradients_do_not_depend_on_chunks(monkeypatch, kept, budget):
    monkeypatch.setattr(logprobs_module, "_KEPT", kept)
    monkeypatch.setattr(logprobs_module, "_CHUNK_CPU", budget)
    hidden, weight, targets = drawn(150, 8), drawn(19, 8, seed=1), torch.arange(150) % 19
    gradients = []
    for chunked in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            found = token_logprobs(lambda x, w=w: x @ w.T, h, targets, 19, 0.7)
        else:
            found = torch.log_softmax(h @ w.T / 0.7, -1)[torch.arange(150), targets]
        (found * drawn(150, seed=2)).sum().backward()
        gradients.append((found.detach(), h.grad, w.grad))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-11)


def test_entropies_are_of_the_tempered_distribution():
    logits = drawn(100, 19)
    targets = torch.arange(100) % 19
    found, entropies = token_logprobs_and_entropies(lambda x: x, logits, targets, 19, 0.5)
    p = torch.softmax(logits / 0.5, -1)
    torch.testing.assert_close(entropies, -(p * p.log()).sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, p[torch.arange(100), targets].log(), rtol=0, atol=1e-12)


def test_half_precision_logits_are_normalised_in_single_precision():
    logits = drawn(64, 19).bfloat16()
    found = token_logprobs(lambda x: x, logits, torch.zeros(64, dtype=torch.int64), 19)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.log_softmax(logits.float(), -1)[:, 0])


def test_logprobs_of_a_batch_are_those_of_its_targets():
    model, batch = tiny_model(), language_batch()
    found = logprobs(model, batch, 0.7)
    rows = torch.log_softmax(model.logits(model(batch.tokens, batch.layout)) / 0.7, -1)
    expected = rows[torch.arange(batch.cells), batch.targets]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert math.isfinite(found.sum().item())
