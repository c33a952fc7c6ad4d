"""Adapters on a model: against PEFT, merged, on fewer bits, frozen, and through the trainer."""

import os
import signal

import peft
import pytest
import torch
from scipy.stats import norm
from torch import nn

from fourstage.adapters.adapting import (
    adapt,
    adapted_layers,
    base_of,
    freeze,
    merge,
    quantised_share,
    trained_share,
)
from fourstage.adapters.layer import AdaptedLinear
from fourstage.adapters.quantised import BLOCK, NF4, QuantisedLinear, dequantise, quantise
from fourstage.data.batch import Batch
from fourstage.errors import InputError, Interrupted
from fourstage.model.layout import Layout
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.replicas import sharing_weights
from fourstage.recipe.adapter import Adapter
from fourstage.training.guards import documents_do_not_leak
from fourstage.training.optimisers.roles import roles, width_factor
from tiny_models import logits_of, tiny_family, tiny_model
from training_support import BufferSource, same_bits, tiny_batch, trainer, weights_of

KINDS = ("lora", "rslora", "dora")
TOKENS = [5, 3, 9, 1, 7, 2, 30, 8]


def settled(model, seed=1):
    """The model with adapters that make a difference."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.copy_(0.2 * torch.randn(layer.lora_B.shape, generator=draw))
            if layer.lora_magnitude_vector is not None:
                noise = torch.rand(layer.lora_magnitude_vector.shape, generator=draw)
                layer.lora_magnitude_vector.mul_(0.5 + noise)
    return model


def adapted(settings, seed=0, **changes):
    model = tiny_model(**changes)
    adapt(model, settings, seed)
    return model


class One(nn.Module):
    """A module around a layer, as PEFT wants it."""

    def __init__(self, bias):
        super().__init__()
        self.layer = nn.Linear(24, 40, bias=bias)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_and_its_gradients_are_those_of_peft(kind, bias):
    torch.manual_seed(0)
    base = One(bias)
    ours = AdaptedLinear(base.layer, Adapter(kind=kind, rank=4, alpha=6), 0, "layer")
    theirs = peft.get_peft_model(
        One(bias),
        peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=["layer"], use_dora=kind == "dora",
            use_rslora=kind == "rslora", bias="none",
        ),
    )  # fmt: skip
    layer = theirs.base_model.model.layer
    magnitudes = torch.rand(40) + 0.5
    with torch.no_grad():
        ours.lora_B.normal_()
        for name in ("weight", "bias") if bias else ("weight",):
            getattr(layer.base_layer, name).copy_(getattr(base.layer, name))
        layer.lora_A["default"].weight.copy_(ours.lora_A)
        layer.lora_B["default"].weight.copy_(ours.lora_B)
        if kind == "dora":
            ours.lora_magnitude_vector.copy_(magnitudes)
            layer.lora_magnitude_vector["default"].weight.copy_(magnitudes)
    x = torch.randn(7, 24)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = ours(mine), theirs(other)
    torch.testing.assert_close(y, z, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (z * weights).sum().backward()
    pairs = [(mine, other), (ours.lora_A, layer.lora_A["default"].weight),
             (ours.lora_B, layer.lora_B["default"].weight)]  # fmt: skip
    if kind == "dora":
        pairs.append((ours.lora_magnitude_vector, layer.lora_magnitude_vector["default"].weight))
    for own, peer in pairs:
        torch.testing.assert_close(own.grad, peer.grad, atol=1e-5, rtol=1e-5)
    assert base.layer.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_nothing_before_it_is_trained(kind):
    model = adapted(Adapter(kind=kind, rank=4))
    torch.testing.assert_close(logits_of(model, TOKENS), logits_of(tiny_model(), TOKENS))


def test_a_row_of_zeros_has_no_length_to_be_divided_by():
    linear = nn.Linear(8, 4, bias=False)
    nn.init.zeros_(linear.weight)
    layer = AdaptedLinear(linear, Adapter(kind="dora", rank=2), 0, "layer")
    y = layer(torch.randn(3, 8))
    y.sum().backward()
    assert y.abs().max() == 0 and layer.lora_B.grad.isfinite().all()


@pytest.mark.parametrize("base", ["full", "int8", "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_the_adapter_does(kind, base):
    model = settled(adapted(Adapter(kind=kind, rank=4, base=base), qkv_bias=True))
    before = logits_of(model, TOKENS)
    assert not torch.allclose(before, logits_of(tiny_model(qkv_bias=True), TOKENS), atol=1e-2)
    merge(model)
    assert not adapted_layers(model)
    assert weights_of(model).keys() == weights_of(tiny_model(qkv_bias=True)).keys()
    torch.testing.assert_close(logits_of(model, TOKENS), before, atol=1e-4, rtol=1e-4)


def test_by_default_every_linear_layer_of_the_blocks_is_adapted_and_nothing_else_trains():
    model = adapted(Adapter(rank=2))
    assert len(adapted_layers(model)) == 2 * 7
    trained = {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"}


def test_a_scalar_head_is_trained_beside_the_adapter():
    model = adapted(Adapter(rank=2, targets=["q_proj"]), head="scalar")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "score.weight" in trained and len(trained) == 1 + 2 * 2


def test_experts_and_their_router_are_left_as_they_are():
    model = tiny_family("mixtral")
    adapt(model, Adapter(rank=2), 0)
    assert {name.rsplit(".", 1)[1] for name in adapted_layers(model)} == {
        "q_proj", "k_proj", "v_proj", "o_proj"
    }  # fmt: skip


def test_a_frozen_layer_gets_no_adapter():
    model = tiny_model()
    freeze([model], ["model.layers.0.*"])
    adapt(model, Adapter(rank=2), 0)
    assert all(name.startswith("model.layers.1.") for name in adapted_layers(model))


def test_a_target_that_is_no_layer_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"'q_porj'.*did you mean 'q_proj'.*down_proj"):
        adapted(Adapter(targets=["q_porj"]))


def test_a_pattern_that_fits_nothing_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"'model.layer.0.\*'"):
        freeze([tiny_model()], ["model.embed_tokens.*", "model.layer.0.*"])


def test_a_pattern_may_fit_one_of_several_models():
    policy, critic = tiny_model(), tiny_model("scalar")
    freeze([policy, critic], ["score.*", "model.norm.weight"])
    assert not critic.score.weight.requires_grad and not policy.model.norm.weight.requires_grad
    assert critic.model.embed_tokens.weight.requires_grad


def test_the_base_shares_the_frozen_weights_and_has_their_outputs_exactly():
    model = settled(adapted(Adapter(rank=4)))
    base, plain = base_of(model), tiny_model()
    assert torch.equal(logits_of(base, TOKENS), logits_of(plain, TOKENS))
    assert not torch.allclose(logits_of(model, TOKENS), logits_of(plain, TOKENS), atol=1e-2)
    own = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in base.parameters()} < own
    assert adapted_layers(model) and not adapted_layers(base)


# Fewer bits


def test_the_values_of_nf4_are_the_quantiles_that_the_paper_gives():
    # QLoRA, section 3: quantiles of N(0, 1), eight above zero and seven below, zero among them.
    offset = 0.5 * (1 - 1 / 30 + 1 - 1 / 32)
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].double())
    below = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].double())
    values = torch.tensor(sorted([*above, 0.0, *below]))
    torch.testing.assert_close(
        values / values.max(), torch.tensor(NF4, dtype=torch.double), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("columns", [1, 63, 64, 129, 256])
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_codes_stand_for_the_nearest_values(base, columns):
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns))
    weight[2] = 0.0
    codes, scales = quantise(weight, base)
    back = dequantise(codes, scales, columns)
    assert back.shape == weight.shape and torch.equal(back[2], weight[2])
    if base == "int8":
        bound = weight.abs().amax(1, keepdim=True) / 254
        assert codes.nbytes == weight.numel()
    else:
        values = torch.tensor(NF4)
        largest = torch.stack([part.abs().amax(1) for part in weight.split(BLOCK, 1)], 1)
        bound = (values.diff().max() / 2) * largest.repeat_interleave(BLOCK, 1)[:, :columns]
        assert codes.nbytes == 5 * -(-columns // 2)
    assert ((weight - back).abs() <= bound + 1e-6).all()
    again = quantise(back, base)
    torch.testing.assert_close(dequantise(*again, columns), back)


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_quantised_layer_passes_gradients_through_and_keeps_no_full_matrix(base):
    linear = nn.Linear(96, 64)
    layer = QuantisedLinear(linear, base)
    x = torch.randn(3, 96, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    torch.testing.assert_close(y, x @ layer.weight.t() + linear.bias)
    assert sum(t.nbytes for t in kept) < 4 * 96 * 64 / 3
    weights = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(gradient, weights @ layer.weight)


def test_a_quantised_layer_computes_in_the_precision_of_autocast():
    layer = QuantisedLinear(nn.Linear(64, 8, bias=False), "nf4")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16


# Training


def test_the_rate_of_b_does_not_go_with_the_width():
    role_of = roles(adapted(Adapter(rank=2)))
    factors = {
        name.rsplit(".", 1)[1]: width_factor(role, "adamw", 4.0)
        for name, role in role_of.items()
        if "lora" in name
    }
    assert factors == {"lora_A": 0.25, "lora_B": 1.0}


@pytest.mark.parametrize("settings", [
    Adapter(rank=4), Adapter(rank=4, dropout=0.2), Adapter(rank=4, kind="dora", base="nf4")
])  # fmt: skip
def test_an_interrupted_adapter_ends_with_the_same_bits(tmp_path, settings):
    class Stops(BufferSource):
        def batch(self, step):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    def train(name, source, model):
        adapt(model, settings, 3)
        trainer(tmp_path / name, model, source, checkpoint_every=4, ema=0.9).train()

    straight, resumed = _small(), _small()
    train("a", BufferSource(), straight)
    with pytest.raises(Interrupted):
        train("b", Stops(), _small())
    train("b", BufferSource(), resumed)
    assert same_bits(weights_of(straight), weights_of(resumed))
    moved = [layer.lora_B.abs().max() for layer in adapted_layers(straight).values()]
    assert min(moved) > 0


def _small():
    return tiny_model(vocab_size=40, context=32)


def test_a_checkpoint_holds_what_is_trained_alone(tmp_path):
    from safetensors.torch import load_file

    model = _small()
    adapt(model, Adapter(rank=2), 0)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer(tmp_path, model, steps=3).train()
    (path,) = tmp_path.glob("checkpoints/*/model.safetensors")
    assert load_file(path).keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, before in frozen.items():
        assert torch.equal(model.get_parameter(name), before)


def test_frozen_parameters_keep_their_bytes_and_the_others_move(tmp_path):
    model, start = _small(), weights_of(_small())
    freeze([model], ["model.embed_tokens.*", "model.layers.0.*"])
    trainer(tmp_path, model, steps=3).train()
    for name, weight in weights_of(model).items():
        frozen = name.startswith(("model.embed_tokens.", "model.layers.0."))
        assert torch.equal(weight, start[name]) == frozen, name


def test_blocks_computed_again_drop_out_the_same(tmp_path):
    gradients = []
    for recompute in ("none", "block"):
        model = adapted(Adapter(rank=4, dropout=0.5))
        settled(model).recompute = recompute
        torch.manual_seed(0)
        model(torch.tensor(TOKENS), Layout([len(TOKENS)])).square().sum().backward()
        gradients.append([layer.lora_B.grad for layer in adapted_layers(model).values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_threads_share_an_adapter():
    model = settled(adapted(Adapter(rank=4, base="int8")))
    twin = sharing_weights(model)
    assert torch.equal(logits_of(twin, TOKENS), logits_of(model, TOKENS))
    assert {p.data_ptr() for p in twin.parameters()} == {p.data_ptr() for p in model.parameters()}


def test_operations_of_frozen_weights_are_four_and_not_six():
    from fourstage.training.cost import TrainingCost

    batch: Batch = tiny_batch(0, 0)
    whole = TrainingCost(_small())(batch.lengths)
    frozen = _small()
    frozen.requires_grad_(False)
    assert TrainingCost(frozen)(batch.lengths) == pytest.approx(whole * 2 / 3)


def test_guards_see_a_model_that_drops_nothing_out_and_training_one_that_does(tmp_path):
    seen = set()

    class Sees(NextToken):
        def sums(self, module, micro):
            seen.add((torch.is_grad_enabled(), module.training))
            return super().sums(module, micro)

    model = adapted(Adapter(rank=4, dropout=0.5))
    guards = [documents_do_not_leak()]
    trainer(tmp_path, model, steps=1, guards=guards, objective=Sees(), watch_every=0).train()
    assert seen == {(False, False), (True, True)}


@pytest.mark.parametrize("base", ["full", "int8", "nf4"])
def test_shares_are_of_the_weights_that_codes_stand_for(base):
    every = sum(p.numel() for p in tiny_model().parameters())
    assert (trained_share(tiny_model()), quantised_share(tiny_model())) == (1, 0)
    model = adapted(Adapter(rank=3, base=base, kind="dora"))
    layers = adapted_layers(model).values()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    matrices = sum(len(layer.lora_B) * layer.lora_A.shape[1] for layer in layers)
    assert trained_share(model) == trained / every
    assert quantised_share(model) == (0 if base == "full" else matrices / every)
