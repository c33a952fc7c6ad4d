"""What a mixture of experts promises."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fourstage.model.experts import Loads, Mixture, Routing
from fourstage.model.layout import Layout
from fourstage.model.mlp import MLP
from fourstage.objectives.balance import balance_sum, router_z_sum
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.training.update import Update
from tiny_models import tiny_model
from training_support import settings, tiny_batch

EXPERTS = {"experts": 4, "experts_per_token": 2}


def mixtures(model) -> list[Mixture]:
    return [block.mlp for block in model.model.layers]


def updates(model, steps: int, objective: NextToken, **changed) -> list:
    update = Update(model, objective, settings(**changed), torch.device("cpu"), Group())
    return [update(tiny_batch(1, step), 1e-3) for step in range(steps)]


@pytest.mark.parametrize("micro_batch_tokens", [1, 9, 20])
def test_update_with_experts_is_independent_of_micro_batch_size(micro_batch_tokens):
    whole, cut = (tiny_model(**EXPERTS).double() for _ in range(2))
    objective = NextToken(balance=0.5, router_z=0.1)
    one = updates(whole, 4, objective)
    other = updates(cut, 4, objective, micro_batch_tokens=micro_batch_tokens)
    for a, b in zip(one, other, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
        assert a.metrics["balance"] == pytest.approx(b.metrics["balance"], rel=1e-6)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert_close(a, b, rtol=1e-6, atol=1e-8)
    for a, b in zip(mixtures(whole), mixtures(cut), strict=True):
        assert torch.equal(a.load, b.load)
        assert a.load.sum().item() == pytest.approx(2)
        assert a.load.std() > 0


def test_a_step_that_is_not_applied_leaves_the_shares():
    model = tiny_model(**EXPERTS)
    update = Update(model, NextToken(balance=0.5), settings(), torch.device("cpu"), Group())
    before = [mixture.load.clone() for mixture in mixtures(model)]
    update.accepts = lambda outcome: False
    update(tiny_batch(1, 0), 1e-3)
    update.accepts = lambda outcome: True
    assert all(torch.equal(m.load, b) for m, b in zip(mixtures(model), before, strict=True))
    update(tiny_batch(1, 1), 1e-3)
    alone = tiny_model(**EXPERTS)
    Update(alone, NextToken(balance=0.5), settings(), torch.device("cpu"), Group())(
        tiny_batch(1, 1), 1e-3
    )
    for mine, theirs in zip(mixtures(model), mixtures(alone), strict=True):
        assert torch.equal(mine.load, theirs.load)


def test_shares_are_part_of_a_checkpoint():
    state = tiny_model(**EXPERTS).state_dict()
    assert "model.layers.1.mlp.load" in state


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_experts_that_are_all_equal_are_one_mlp(activation):
    mixed = tiny_model(**EXPERTS, activation=activation)
    mixture, plain = mixtures(mixed)[0], MLP(tiny_model(activation=activation).config)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            getattr(mixture.experts, name.removesuffix(".weight")).copy_(weight.expand(4, -1, -1))
    x = torch.randn(11, 32, generator=torch.Generator().manual_seed(0))
    assert_close(mixture(x), plain(x), rtol=1e-5, atol=1e-6)


def test_a_mixture_is_the_weighted_sum_of_the_likeliest_experts():
    model = tiny_model(**EXPERTS).double()
    mixture = mixtures(model)[0]
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed, part = mixture(x), mixture.experts
    for cell, row in enumerate(x):
        probabilities = (mixture.gate.weight @ row).softmax(0)
        best = probabilities.argsort(descending=True)[:2]
        weights = probabilities[best] / probabilities[best].sum()
        inner = [torch.nn.functional.silu(part.gate_proj[e] @ row) for e in best]
        outs = [
            part.down_proj[e] @ (i * (part.up_proj[e] @ row))
            for e, i in zip(best, inner, strict=True)
        ]
        assert_close(mixed[cell], weights[0] * outs[0] + weights[1] * outs[1])


def test_gradients_through_the_dispatch_are_exact():
    torch.manual_seed(0)
    mixture = mixtures(tiny_model(**EXPERTS, width=4, heads=2, kv_heads=2, mlp_width=3))[0]
    mixture = mixture.double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(mixture.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: mixture(x), (x, *parameters))


def test_the_terms_are_those_of_the_papers():
    model, lengths = tiny_model(**EXPERTS), [9, 4]
    tokens = torch.arange(13)
    loads = torch.tensor([0.8, 0.6, 0.4, 0.2])
    for mixture in mixtures(model):
        mixture.load.copy_(loads)
    routing = []
    model(tokens, Layout(lengths), routing=routing)
    assert len(routing) == 2 and routing[0].logits.shape == (13, 4)
    expected = [4 * (loads * each.logits.softmax(-1).mean(0)).sum() for each in routing]
    assert_close(balance_sum(routing) / 13, sum(expected) / 2)
    squares = [each.logits.exp().sum(-1).log().square().mean() for each in routing]
    assert_close(router_z_sum(routing) / 13, sum(squares) / 2)


def test_recomputed_blocks_count_and_weigh_alike():
    plain, again = tiny_model(**EXPERTS), tiny_model(**EXPERTS)
    again.recompute = "block"
    objective = NextToken(balance=0.5, router_z=0.1)
    one, other = updates(plain, 3, objective), updates(again, 3, objective)
    assert [each.loss for each in one] == [each.loss for each in other]
    for a, b in zip(mixtures(plain), mixtures(again), strict=True):
        assert torch.equal(a.load, b.load)


def test_the_balancing_loss_spreads_what_a_router_crowds():
    draw = torch.Generator().manual_seed(0)
    mixture = mixtures(tiny_model(**EXPERTS))[0]
    x = 1 + torch.randn(256, 32, generator=draw)
    with torch.no_grad():
        # A direction that all cells share makes the first expert everybody's.
        mixture.gate.weight.copy_(0.1 * torch.randn(4, 32, generator=draw))[0].add_(0.1)
    loads, router = Loads(mixture), torch.optim.SGD([mixture.gate.weight], lr=0.01)
    most = []
    for _ in range(60):
        routing: list[Routing] = []
        mixture(x, routing)
        router.zero_grad()
        (balance_sum(routing) / len(x)).backward()
        router.step()
        loads.add(1.0)
        loads.settle(loads.take())
        most.append(mixture.load.max().item())
    assert most[0] > 0.95
    assert max(most[-10:]) < 0.55
