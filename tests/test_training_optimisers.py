"""Muon, 8-bit AdamW and scaling with width: against their references, and whole after a resume."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import settings as quick
from hypothesis import strategies as st
from safetensors.torch import load_file

import sharded_optimisers
from fourstage.errors import InputError, Interrupted
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.planning.memory import optimiser_bytes
from fourstage.training.checkpoint import save_tensors
from fourstage.training.optimiser import Optimiser
from fourstage.training.optimisers import adamw8bit, muon
from fourstage.training.optimisers.roles import roles
from fourstage.training.settings import OPTIMISERS
from fourstage.training.update import Update
from training_support import (
    KillsItself,
    same_bits,
    settings,
    tiny_batch,
    tiny_model,
    trainer,
    weights_of,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Muon


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 16, 16)])
def test_newton_schulz_applies_its_quintic_to_the_singular_values_alone(shape):
    matrices = drawn(*shape)
    u, sizes, v = torch.linalg.svd(matrices, full_matrices=False)
    sizes = sizes / sizes.norm(dim=-1, keepdim=True)
    a, b, c = muon.COEFFICIENTS
    for _ in range(muon.ITERATIONS):
        sizes = a * sizes + b * sizes**3 + c * sizes**5
    expected = u @ torch.diag_embed(sizes) @ v
    torch.testing.assert_close(muon.orthogonalise(matrices, torch.float64), expected)
    assert float(sizes.max()) < 1.25


def test_newton_schulz_is_that_of_torch():
    from torch.optim import _muon as theirs

    for shape in ((64, 128), (128, 64)):
        matrix = drawn(*shape).float()
        rest = (muon.COEFFICIENTS, muon.ITERATIONS, 1e-7)
        expected = theirs._zeropower_via_newtonschulz(matrix, *rest).float()
        mine = muon.orthogonalise(matrix[None], torch.bfloat16)[0].float()
        # bf16 keeps 8 bits, and five iterations magnify their rounding.
        assert float((mine - expected).norm() / expected.norm()) < 0.03


def test_muon_is_that_of_torch_but_for_the_rounding_of_newton_schulz(monkeypatch):
    from torch.optim import _muon as theirs

    def exact(gradient, *_):
        return muon.orthogonalise(gradient[None])[0]

    monkeypatch.setattr(theirs, "_zeropower_via_newtonschulz", exact)
    shapes = [(12, 20), (20, 12), (12, 20)]
    mine, reference = (
        [torch.nn.Parameter(drawn(*shape, seed=n).float()) for n, shape in enumerate(shapes)]
        for _ in range(2)
    )
    ours = muon.Muon([{"params": mine}], lr=0.02, weight_decay=0.1)
    torchs = torch.optim.Muon(
        reference, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(4):
        for number, (a, b) in enumerate(zip(mine, reference, strict=True)):
            a.grad = drawn(*a.shape, seed=10 * step + number).float()
            b.grad = a.grad.clone()
        ours.step()
        torchs.step()
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_each_of_stacked_experts_gets_the_update_of_a_matrix_of_its_own():
    stacked = torch.nn.Parameter(drawn(3, 10, 6).float())
    alone = [torch.nn.Parameter(expert.clone()) for expert in stacked.detach()]
    stacked.grad = drawn(3, 10, 6, seed=1).float()
    for expert, gradient in zip(alone, stacked.grad, strict=True):
        expert.grad = gradient.clone()
    muon.Muon([{"params": [stacked]}], lr=0.1).step()
    muon.Muon([{"params": alone}], lr=0.1).step()
    torch.testing.assert_close(stacked.detach(), torch.stack(alone).detach())


def test_large_matrices_are_not_stacked(monkeypatch):
    shapes = [(8, 4), (4, 8), (8, 4), (8, 4)]

    def stepped():
        parameters = [torch.nn.Parameter(drawn(*s, seed=n).float()) for n, s in enumerate(shapes)]
        for parameter in parameters:
            parameter.grad = parameter.detach() * 2
        muon.Muon([{"params": parameters}], lr=0.1).step()
        return parameters

    together = stepped()
    monkeypatch.setattr(muon, "_STACKED", 40)
    assert [len(alike) for alike in muon._alike(together)] == [1, 1, 1, 1]
    for a, b in zip(together, stepped(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tied", [False, True])
def test_muon_is_for_the_matrices_inside_the_model(tied):
    config = ModelConfig(40, 32, 1, 2, 1, 48, 32, tie_embeddings=tied)
    module = ActorCritic(
        Transformer(config).initialise(0), Transformer(config, head="scalar").initialise(0)
    )
    role_of = roles(module)
    tables = {name for name, role in role_of.items() if role == "table"}
    assert tables == {f"{part}.model.embed_tokens.weight" for part in ("policy", "critic")}
    heads = {name for name, role in role_of.items() if role == "head"}
    assert heads == ({"critic.score.weight"} | (set() if tied else {"policy.lm_head.weight"}))
    optimiser = Optimiser(module, settings(optimiser="muon"))
    optimiser.gradients()
    optimiser.step(0.1)
    by_muon = {n.split(":")[0] for n in optimiser.state() if n.endswith(":momentum_buffer")}
    assert by_muon == {name for name, role in role_of.items() if role == "matrix"}
    assert len(by_muon) == 14


# 8-bit AdamW


@pytest.mark.parametrize("signed", [True, False])
def test_codes_stand_for_256_values_over_seven_decades_and_each_is_its_own_nearest(signed):
    values = adamw8bit.code_values(signed)
    assert len(values) == 256 and values.unique().numel() == 256
    assert float(values.abs().max()) == 1.0 and float(values.min()) == pytest.approx(
        -0.9929688 if signed else 0.0
    )
    codes, scales = adamw8bit.quantise(values[None], signed)
    expected = torch.arange(256).clamp(min=0 if signed else 1)
    assert codes[0].tolist() == expected.tolist() and scales.tolist() == [[1.0]]


@quick(max_examples=60, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 600), st.booleans(), st.integers(0, 1000), st.integers(1, 8)
)
def test_a_code_is_the_nearest_to_the_share_of_the_blocks_largest(rows, cols, signed, seed, power):
    values = drawn(rows, cols, seed=seed).float() ** power
    values = values if signed else values.abs()
    codes, scales = adamw8bit.quantise(values, signed)
    back = adamw8bit.dequantise(codes, scales, signed)
    blocks = torch.arange(cols) // adamw8bit.BLOCK
    largest = scales[:, blocks]
    assert codes.shape == values.shape and scales.shape == (rows, int(blocks[-1]) + 1)
    table = adamw8bit.code_values(signed)[0 if signed else 1 :]
    best = (values[..., None] - table * largest[..., None]).abs().amin(-1)
    error = (values - back).abs()
    assert bool((error <= best * (1 + 1e-4) + 1e-6 * largest).all())


def test_a_second_moment_above_zero_never_becomes_zero():
    values = torch.tensor([[1.0, 1e-20, 0.0]])
    codes, scales = adamw8bit.quantise(values, signed=False)
    assert float(adamw8bit.dequantise(codes, scales, signed=False)[0, 1]) > 0
    nothing, scales = adamw8bit.quantise(torch.zeros(2, 3), signed=False)
    assert not adamw8bit.dequantise(nothing, scales, signed=False).any()


def test_eight_bit_adamw_is_that_of_torchao(monkeypatch):
    theirs = pytest.importorskip("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    start = drawn(16, 512).float()
    mine, reference = (torch.nn.Parameter(start.clone()) for _ in range(2))
    plain = torch.nn.Parameter(start.clone())
    rest = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    rules = [
        adamw8bit.AdamW8bit([{"params": [mine]}], **rest),
        theirs.AdamW8bit([reference], **rest),
        torch.optim.AdamW([plain], **rest),
    ]
    for step in range(10):
        gradient = drawn(16, 512, seed=step).float()
        for parameter, rule in zip((mine, reference, plain), rules, strict=True):
            parameter.grad = gradient.clone()
            rule.step()
    mine, reference, plain = (parameter.detach() for parameter in (mine, reference, plain))
    moved = float((plain - start).norm())
    assert float((mine - reference).norm()) < 2e-3 * moved
    assert 1e-3 * moved < float((mine - plain).norm()) < 0.03 * moved


# All of them


def update_of(model, **changed) -> Update:
    return Update(model, NextToken(), settings(**changed), torch.device("cpu"), Group())


def wide_model() -> Transformer:
    """Matrices large enough for a byte a moment."""
    return Transformer(ModelConfig(40, 64, 1, 2, 2, 96, 32)).initialise(0)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_state_comes_back_from_a_file_with_the_same_bits(tmp_path, name):
    straight, resumed = wide_model(), wide_model()
    update = update_of(straight, optimiser=name)
    for step in range(3):
        update(tiny_batch(4, step), 3e-3)
    save_tensors(tmp_path / "optimiser.safetensors", update.optimiser.state())
    resumed.load_state_dict(straight.state_dict())
    again = update_of(resumed, optimiser=name)
    again.optimiser.restore(load_file(tmp_path / "optimiser.safetensors"))
    for step in range(3, 6):
        update(tiny_batch(4, step), 3e-3)
        again(tiny_batch(4, step), 3e-3)
    assert same_bits(weights_of(straight), weights_of(resumed))
    assert same_bits(update.optimiser.state(), again.optimiser.state())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, name):
    straight, resumed = wide_model(), wide_model()
    trainer(tmp_path / "a", straight, optimiser=name).train()
    with pytest.raises(Interrupted):
        trainer(tmp_path / "b", wide_model(), KillsItself(4), optimiser=name).train()
    trainer(tmp_path / "b", resumed, optimiser=name).train()
    assert same_bits(weights_of(straight), weights_of(resumed))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_each_optimiser_learns(name):
    update = update_of(wide_model(), optimiser=name)
    losses = [update(tiny_batch(0, step % 4), 3e-3).loss for step in range(40)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("tied", [False, True])
def test_state_takes_the_bytes_that_the_plan_says(name, tied):
    config = ModelConfig(600, 128, 2, 4, 2, 320, 32, tie_embeddings=tied)
    optimiser = Optimiser(Transformer(config), settings(optimiser=name))
    optimiser.gradients()
    optimiser.step(1e-3)
    held = sum(
        value.numel() * value.element_size()
        for key, value in optimiser.state().items()
        if not key.endswith(":step")
    )
    # Blocks are of 128 to 256 numbers, the plan counts with 256.
    assert held == pytest.approx(optimiser_bytes(config, name), rel=0.02)
    full = 8 * config.parameters()
    assert held == full if name == "adamw" else held < 0.75 * full


def test_an_unknown_optimiser_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'muon'"):
        settings(optimiser="moun")


def test_a_module_that_is_frozen_throughout_is_refused():
    with pytest.raises(InputError, match="freeze less"):
        Optimiser(tiny_model().requires_grad_(False), settings())


@pytest.mark.timeout(180)
def test_sharded_over_two_processes_the_steps_are_those_of_one(tmp_path):
    torch.multiprocessing.spawn(
        sharded_optimisers.step_sharded, (str(tmp_path), OPTIMISERS), nprocs=2
    )
    for name in OPTIMISERS:
        module = sharded_optimisers.Toy()
        start = weights_of(module)
        sharded_optimisers.steps(module, Optimiser(module, settings(optimiser=name)), 0, 5)
        together = load_file(tmp_path / f"{name}.safetensors")
        for key, value in weights_of(module).items():
            moved = float((value - start[key]).abs().max())
            assert moved > 1e-2
            assert float((together[key] - value).abs().max()) < 1e-4 * moved, (name, key)


# Scaling with width


WIDTHS = (32, 64, 128, 256)


def widened(width: int, base_width: int | None) -> tuple[Transformer, float]:
    """A model of heads of 16, and its width over the base."""
    heads = width // 16
    config = ModelConfig(40, width, 2, heads, heads, 3 * width, 32)
    ratio = width / base_width if base_width else 1.0
    return Transformer(config).initialise(0, ratio), ratio


def change_of_logits(name: str, base_width: int | None) -> list[float]:
    """Root mean square of what four steps at one rate change in the logits, for each width."""
    changes = []
    for width in WIDTHS:
        model, ratio = widened(width, base_width)
        batch = tiny_batch(0, 100, documents=16)
        with torch.no_grad():
            before = model.logits(model(batch.tokens, batch.layout))
        update = update_of(model, optimiser=name, width_ratio=ratio, weight_decay=0.0)
        for step in range(4):
            update(tiny_batch(0, step, documents=16), 4e-3)
        with torch.no_grad():
            after = model.logits(model(batch.tokens, batch.layout))
        changes.append(float((after - before).square().mean().sqrt()))
    return changes


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_with_mup_a_step_changes_the_logits_as_much_at_every_width(name):
    standard, scaled = change_of_logits(name, None), change_of_logits(name, WIDTHS[0])
    # A narrow model is off by about 1 / sqrt(width), and the change settles as it widens.
    assert max(scaled) < 1.75 * min(scaled) and scaled[-1] == pytest.approx(scaled[-2], rel=0.1)
    assert standard[-1] > 2.5 * standard[0], standard
    assert all(a < b for a, b in itertools.pairwise(standard))


def test_with_mup_the_first_logits_shrink_and_a_ratio_of_one_changes_nothing():
    sizes = []
    for width in WIDTHS:
        model, _ = widened(width, WIDTHS[0])
        batch = tiny_batch(0, 0)
        with torch.no_grad():
            sizes.append(float(model.logits(model(batch.tokens, batch.layout)).std()))
    for width, size in zip(WIDTHS, sizes, strict=True):
        assert size == pytest.approx(sizes[0] * math.sqrt(WIDTHS[0] / width), rel=0.25)
    same, plain = Transformer(tiny_model().config).initialise(3, 1.0), tiny_model(3)
    assert same_bits(weights_of(same), weights_of(plain))


def test_width_changes_the_rate_of_matrices_and_heads_and_no_decay():
    models = [wide_model(), wide_model()]
    for model, ratio in zip(models, (1.0, 4.0), strict=True):
        optimiser = Optimiser(model, settings(width_ratio=ratio, weight_decay=0.5))
        optimiser.gradients()
        optimiser.step(0.1)
    # Gradients are zero: what changes is decay alone.
    for a, b in zip(*(weights_of(model).values() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    moved = []
    for ratio in (1.0, 4.0):
        model = wide_model()
        start = weights_of(model)
        optimiser = Optimiser(model, settings(width_ratio=ratio, weight_decay=0.0))
        for gradient in optimiser.gradients():
            gradient.fill_(1.0)
        optimiser.step(0.1)
        moved.append({name: value - start[name] for name, value in weights_of(model).items()})
    for name, role in roles(wide_model()).items():
        factor = 4.0 if role in ("matrix", "head") else 1.0
        torch.testing.assert_close(moved[0][name], factor * moved[1][name], rtol=1e-3, atol=1e-6)
