"""The estimate of a step's memory is what the allocator counts, whatever the model is built of."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourstage import kernels
from fourstage.cli.planned import told
from fourstage.kernels import library
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.planning import DataFacts
from fourstage.planning.memory import (
    Step,
    largest_micro_batch,
    optimiser_bytes,
    step_memory,
)
from fourstage.planning.plan import make_plan
from fourstage.planning.speed import Speed
from fourstage.planning.steps import largest_fit, stage_step
from fourstage.recipe import load
from fourstage.reporting.numbers import SPACE, storage
from fourstage.training.settings import TrainSettings
from fourstage.training.update import Update
from memory_support import RAGGED, SHAPE, documents, peak_bytes

EVEN = (128,) * 8


@pytest.fixture(params=[False, True], ids=["torch alone", "kernels"])
def computed(request):
    """With torch alone, then with the C kernels."""
    if request.param and library.load() is None:
        pytest.skip("this machine has no C compiler")
    if request.param:
        yield
    else:
        with kernels.without():
            yield


LARGE = ModelConfig(32000, 2048, 24, 16, 16, 5632, 2048)


def measured_and_estimated(
    config: ModelConfig,
    lengths: tuple[int, ...] = EVEN,
    micro: int | None = None,
    step: Step | None = None,
) -> tuple[float, float]:
    """Peak bytes of the second step with weights and moments, and the estimate of it."""
    step = dataclasses.replace(step or Step(), kernels=kernels.usable())
    model = Transformer(config, "scalar" if step.scores else "language").initialise(0)
    model.recompute = "block" if step.recompute == "block" else "none"
    batch = documents(config, lengths)
    settings = TrainSettings(
        steps=1, learning_rate=1e-3, micro_batch_tokens=micro, optimiser=step.optimiser
    )
    objective = BradleyTerry() if step.scores else NextToken()
    update = Update(model.train(), objective, settings, torch.device("cpu"), Group())
    update(batch, 1e-3)
    kept = [*model.parameters(), *update.optimiser.state().values()]
    fixed = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    parts = batch.split(micro)
    step = dataclasses.replace(step, accumulates=len(parts) > 1)
    estimated = step_memory(config, max(part.cells for part in parts), step)
    return fixed + peak_bytes(lambda: update(batch, 1e-3)), estimated.total


WAYS: dict[str, tuple[dict, tuple[int, ...], int | None, Step]] = {
    "usual": ({}, EVEN, None, Step()),
    "ragged": ({}, RAGGED * 2, None, Step()),
    "micro-batches": ({}, RAGGED * 4, 400, Step()),
    "recompute": ({}, RAGGED * 4, None, Step(recompute="block")),
    "recompute, micro-batches": ({"layers": 6}, EVEN, 256, Step(recompute="block")),
    "large vocabulary": ({"vocab_size": 30000}, EVEN, None, Step()),
    "logits made again": ({"vocab_size": 140_000, "layers": 1}, EVEN, None, Step()),
    "wide, few tokens": ({"width": 256, "mlp_width": 704}, (32,) * 4, None, Step()),
    "scores": ({}, EVEN, None, Step(scores=True)),
    "muon": ({"width": 256, "mlp_width": 704}, (32,) * 4, None, Step(optimiser="muon")),
}
BUILT: dict[str, dict] = {
    "grouped keys": {"kv_heads": 1},
    "no norms on queries and keys": {"qk_norm": False},
    "squared relu": {"activation": "relu2"},
    "GPT-2": {
        "activation": "gelu_tanh",
        "norm": "layer",
        "positions": "learned",
        "qk_norm": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    "GPT-NeoX": {
        "activation": "gelu",
        "norm": "layer",
        "parallel_residual": True,
        "qk_norm": False,
        "rope_fraction": 0.25,
    },
    "BLOOM": {
        "activation": "gelu_tanh",
        "norm": "layer",
        "positions": "alibi",
        "qk_norm": False,
        "embedding_norm": True,
    },
    "Gemma 2": {
        "activation": "geglu",
        "norm_placement": "around",
        "qk_norm": False,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "windows": (32, 0, 32, 0),
    },
    "OLMo 2": {"norm_placement": "after", "qk_norm_whole": True},
    "Mixtral": {"experts": 4, "experts_per_token": 2, "qk_norm": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_peak_memory_follows_the_estimate(way, computed):
    changed, lengths, micro, step = WAYS[way]
    config = dataclasses.replace(SHAPE, **changed, head_width=0)
    measured, estimated = measured_and_estimated(config, lengths, micro, step)
    assert estimated == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("family", BUILT)
def test_peak_memory_follows_the_estimate_for_every_option_of_the_model(family, computed):
    config = dataclasses.replace(SHAPE, **BUILT[family])
    measured, estimated = measured_and_estimated(config)
    assert estimated == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw8bit"])
def test_optimiser_state_takes_the_bytes_that_are_planned(name):
    config = dataclasses.replace(SHAPE, width=256, mlp_width=704, head_width=0)
    model = Transformer(config).initialise(0)
    settings = TrainSettings(steps=1, learning_rate=1e-3, optimiser=name)
    update = Update(model.train(), NextToken(), settings, torch.device("cpu"), Group())
    update(documents(config, (8, 8)), 1e-3)
    held = sum(t.numel() * t.element_size() for t in update.optimiser.state().values())
    assert optimiser_bytes(config, name) == pytest.approx(held, rel=0.01)


@given(st.integers(1, 2**20), st.integers(2, 64), st.sampled_from(["cpu", "cuda"]))
def test_sharding_and_shared_products_hold_less_on_a_device(cells, devices, device):
    alone = step_memory(LARGE, cells, Step(device=device)).total
    for laid in (Step(device=device, shards=devices), Step(device=device, tensor=devices)):
        assert step_memory(LARGE, cells, laid).total < alone
    shared = Step(device=device, tensor=devices)
    sequence = dataclasses.replace(shared, sequence=True)
    assert step_memory(LARGE, cells, sequence).total <= step_memory(LARGE, cells, shared).total


@given(st.integers(1, 2**20), st.sampled_from(["cpu", "cuda"]), st.booleans())
def test_recomputing_blocks_never_holds_more(cells, device, accumulates):
    kept = Step(device=device, accumulates=accumulates)
    again = dataclasses.replace(kept, recompute="block")
    assert step_memory(LARGE, cells, again).total <= step_memory(LARGE, cells, kept).total


@given(st.floats(5e10, 3e11), st.sampled_from(["off", "block"]))
def test_recomputing_blocks_lets_a_larger_micro_batch_fit(budget, recompute):
    step = Step(device="cuda", recompute=recompute)
    fits = largest_micro_batch(LARGE, budget, step)
    assert not fits or step_memory(LARGE, fits, step).total <= budget
    assert largest_micro_batch(LARGE, budget, Step(device="cuda", recompute="block")) >= fits


def test_a_gpu_recomputes_blocks_only_where_few_tokens_fit_otherwise():
    recipe = load("single-host", ["device=cuda"])
    plenty, scarce = (
        largest_fit(LARGE, recipe, "pretrain", DataFacts(device="cuda", memory_bytes=size))
        for size in (141e9, 36e9)
    )
    assert plenty.recompute == "off" and scarce.recompute == "block"
    assert plenty.micro_batch_tokens > scarce.micro_batch_tokens > 8192
    told = load("single-host", ["device=cuda", "compute.recompute=off"])
    facts = DataFacts(device="cuda", memory_bytes=36e9)
    assert largest_fit(LARGE, told, "pretrain", facts).recompute == "off"


def test_a_plan_shows_the_memory_of_its_largest_stage_by_layout_and_recomputation():
    speed = Speed("8 x H100", 3e15, 1e15, 1e4, 0.01, "data sheet", devices=8)
    facts = DataFacts(device="cuda", memory_bytes=80e9, devices=8)
    plan = make_plan(load("single-host", ["device=cuda", "model.params=7B"]), facts, speed)
    found = {(each.layout, each.recompute): each.memory.total for each in plan.layouts}
    assert {layout for layout, _ in found} == {"one device", "shard=8", "tensor=8"}
    for layout in ("one device", "shard=8", "tensor=8"):
        assert found[layout, "block"] < found[layout, "off"] <= found["one device", "off"]
    page = told(plan, "title", [], None)
    assert "shard=8" in page and storage(found["shard=8", "off"]).replace(SPACE, "") in page


def test_the_step_of_a_stage_is_what_its_recipe_says():
    recipe = load("smoke", ["rl.algorithm=ppo", "parallel.shard=4", "pretrain.ema=0.9"])
    facts = DataFacts(device="cuda", devices=1)
    rl, pretrain = (stage_step(LARGE, recipe, stage, facts) for stage in ("rl", "pretrain"))
    assert (rl.models, rl.frozen_models, rl.shards) == (2, 2, 4)
    assert (pretrain.models, pretrain.frozen_models, pretrain.average) == (1, 0, True)
    assert stage_step(LARGE, recipe, "reward", facts).scores
