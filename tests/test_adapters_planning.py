"""What a recipe with an adapter or frozen weights is planned to take."""

import dataclasses

import pytest
import torch

from fourstage import kernels
from fourstage.adapters.adapting import adapt, freeze
from fourstage.errors import InputError
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.parallel.sizes import Sizes, check_adapter
from fourstage.planning import model_config, resolve
from fourstage.planning.facts import DataFacts
from fourstage.planning.layouts import fits_one_device
from fourstage.planning.memory import Step, state_bytes, step_memory
from fourstage.planning.plan import make_plan
from fourstage.planning.speed import Speed
from fourstage.planning.steps import stage_step
from fourstage.planning.trained import narrowed
from fourstage.recipe import load
from fourstage.recipe.schema import Sft
from fourstage.training.settings import TrainSettings
from fourstage.training.update import Update
from memory_support import documents, peak_bytes
from training_support import trainer

LARGE = ModelConfig(32000, 2048, 24, 16, 16, 5632, 2048)
WIDE = ModelConfig(860, 256, 4, 4, 4, 704, 128)
SPEED = Speed("8 x H100", 3e15, 1e15, 1e4, 0.01, "data sheet", devices=1)


def section(**adapter) -> Sft:
    return Sft.model_validate({"adapter": adapter})


def test_the_weights_that_are_trained_are_the_two_factors():
    step = narrowed(Step(), LARGE, section(rank=16))
    ins_and_outs = 4 * 2 * 2048 + 3 * (2048 + 5632)
    assert step.trained_share == 24 * 16 * ins_and_outs / LARGE.parameters()
    assert step.has_adapter


@pytest.mark.parametrize(("base", "each"), [("full", 4), ("int8", 1), ("nf4", 0.5 + 4 / 64)])
def test_frozen_matrices_take_the_bytes_of_their_codes(base, each):
    step = narrowed(Step(), LARGE, section(rank=1, base=base))
    matrices = 24 * (4 * 2048**2 + 3 * 2048 * 5632)
    rest = 4 * (LARGE.parameters() - matrices)
    assert step.weight_bytes * LARGE.parameters() == pytest.approx(each * matrices + rest, rel=5e-3)


def test_a_pattern_that_fits_nothing_is_told_before_anything_is_spent():
    with pytest.raises(InputError, match="no parameter is called"):
        narrowed(Step(), WIDE, Sft.model_validate({"freeze": "model.layer.*"}))


@pytest.mark.parametrize("adapter", [{"rank": 8}, {"rank": 8, "base": "nf4"}, None])
def test_the_memory_of_a_step_is_what_it_is_estimated_to_be(adapter):
    model = Transformer(WIDE).initialise(0)
    if adapter is None:
        told = Sft.model_validate({"freeze": ["model.layers.0.*", "model.layers.1.*"]})
        freeze([model], told.freeze)
    else:
        told = section(**adapter)
        adapt(model, told.adapter, 0)
    settings = TrainSettings(steps=1, learning_rate=1e-3)
    update = Update(model, NextToken(), settings, torch.device("cpu"), Group())
    batch = documents(WIDE, (64,) * 4)
    update(batch, 1e-3)
    kept = [*model.parameters(), *update.optimiser.state().values()]
    fixed = sum(tensor.nbytes for tensor in kept)
    peak = fixed + peak_bytes(lambda: update(batch, 1e-3))
    step = narrowed(Step(accumulates=False, kernels=kernels.usable()), WIDE, told)
    assert step_memory(WIDE, batch.cells, step).total == pytest.approx(peak, rel=0.1)


def test_a_policy_with_an_adapter_needs_no_reference_of_its_own():
    facts = DataFacts()
    plain = stage_step(WIDE, load("smoke"), "rl", facts)
    adapted = stage_step(WIDE, load("smoke", ["rl.adapter.rank=4"]), "rl", facts)
    assert (plain.frozen_models, adapted.frozen_models) == (2, 1)


def test_an_adapter_takes_less_memory_and_two_thirds_of_the_operations():
    plans = [
        make_plan(
            load("single-host", ["device=cuda", "model.params=1B", *more]), DataFacts(), SPEED
        )
        for more in ([], ["sft.adapter.rank=16"], ["sft.adapter.base=nf4"])
    ]
    whole, adapted, quantised = (plan.stages["sft"] for plan in plans)
    assert quantised.memory_bytes < adapted.memory_bytes < 0.6 * whole.memory_bytes
    assert adapted.flops / whole.flops == pytest.approx(2 / 3, abs=0.02)


def test_what_an_adapter_leaves_out_is_derived_and_told():
    recipe, derived = resolve(load("quickstart", ["sft.adapter.rank=8", "sft.learning_rate="]))
    plain, _ = resolve(load("quickstart", ["sft.learning_rate="]))
    assert recipe.sft.learning_rate == pytest.approx(10 * plain.sft.learning_rate)
    assert (recipe.sft.weight_decay, plain.sft.weight_decay) == (0.0, 0.1)
    assert recipe.sft.adapter.alpha == 16 and recipe.sft.adapter.scale == 2
    told = {item.key: item.rule for item in derived}
    assert "ten times for an adapter" in told["sft.learning_rate"]
    assert "twice the rank" in told["sft.adapter.alpha"]


def test_the_scale_of_rslora_goes_with_the_root_of_its_rank():
    one, other = (
        resolve(load("smoke", ["sft.adapter.kind=rslora", f"sft.adapter.rank={rank}"]))[0]
        for rank in (16, 64)
    )
    assert (one.sft.adapter.scale, other.sft.adapter.scale) == (4, 2)


@pytest.mark.parametrize(("override", "words"), [
    ("sft.adapter.kind=lorra", "did you mean 'lora'"),
    ("sft.adapter.rang=4", "did you mean 'sft.adapter.rank'"),
    ("sft.freeze=,", "must name something"),
    ("pretrain.adapter.rank=4", "write from=FOLDER"),
    ("rl.adapter.dropout=0.1", "another policy than the one that responses are drawn from"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_words(override, words):
    with pytest.raises(InputError, match=words):
        load("smoke", [override])


def test_tensor_parallel_adapters_are_refused():
    check_adapter(Sizes(shard=2), "sft", True)
    with pytest.raises(InputError, match=r"write parallel\.shard=2"):
        check_adapter(Sizes(tensor=2), "sft", True)


@pytest.mark.parametrize("base", ["full", "int8", "nf4"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_counts_are_those_of_an_adapted_model(base, kind):
    config = dataclasses.replace(WIDE, qkv_bias=True, mlp_width=700)
    step = narrowed(Step(), config, section(rank=3, base=base, kind=kind))
    model = Transformer(config).initialise(0)
    adapt(model, section(rank=3, base=base, kind=kind).adapter, 0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = sum(p.nbytes for p in model.parameters())
    assert step.trained_share * config.parameters() == pytest.approx(trained)
    assert step.weight_bytes * config.parameters() == pytest.approx(held)


def test_codes_have_no_copies_in_bf16_beside_them_on_a_gpu():
    held = {
        base: step_memory(LARGE, 2048, narrowed(Step(device="cuda"), LARGE, section(base=base)))
        for base in ("full", "nf4")
    }
    matrices = 24 * (4 * 2048**2 + 3 * 2048 * 5632)
    saved = held["full"].weights - held["nf4"].weights
    assert saved == pytest.approx((4 + 2 - 0.5 - 4 / 64) * matrices, rel=1e-3)


@pytest.mark.parametrize("base", ["full", "nf4"])
def test_a_step_is_fitted_as_it_was_planned(tmp_path, base):
    model = Transformer(WIDE).initialise(0)
    told = section(rank=8, base=base)
    adapt(model, told.adapter, 0)
    fitted, planned = trainer(tmp_path, model).fitting._step, narrowed(Step(), WIDE, told)
    for name in ("trained_share", "quantised_share", "has_adapter"):
        assert getattr(fitted, name) == pytest.approx(getattr(planned, name)), name


def test_adapters_have_the_moments_of_adamw_under_muon_too():
    states = {
        name: state_bytes(LARGE, narrowed(Step(optimiser=name), LARGE, section(rank=16)))
        for name in ("adamw", "muon", "adamw8bit")
    }
    assert states["muon"] == states["adamw"] > 3.5 * states["adamw8bit"]


def test_checkpoints_of_an_adapter_take_as_little_time_as_they_hold():
    def writing(*more: str) -> float:
        plans = [
            make_plan(
                load(
                    "single-host",
                    ["device=cuda", "model.params=1B", *more, f"sft.checkpoint_every={n}"],
                ),
                DataFacts(),
                SPEED,
            )
            for n in (0, 10)
        ]
        often = plans[1].stages["sft"]
        return often.training - plans[0].stages["sft"].training

    share = narrowed(Step(), LARGE, section(rank=16)).trained_share
    assert 0 < writing("sft.adapter.rank=16") < 5 * share * writing()


def test_a_policy_that_is_its_own_reference_fits_a_smaller_device():
    plain, adapted = load("smoke"), load("smoke", ["rl.adapter.rank=4"])
    resolved = [resolve(recipe)[0] for recipe in (plain, adapted)]
    config = model_config(resolved[0])

    def fits(recipe, memory: float) -> bool:
        return fits_one_device(recipe, config, memory, ["rl"], "cuda")

    least = [next(m for m in range(10**6, 10**9, 10**5) if fits(recipe, m)) for recipe in resolved]
    # The reference, and gradients and moments of policy and critic.
    assert least[0] - least[1] > 0.9 * (4 + 2 * 12) * config.parameters() / 0.8
