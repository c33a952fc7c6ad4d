"""The rules go through published runs, and what is estimated moves as it must."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fourstage.model.config import ModelConfig
from fourstage.planning import DataFacts, model_config, resolve, rules
from fourstage.planning.facts import row_tokens
from fourstage.planning.flops import rl_work, six_nd, training_work, utilisation
from fourstage.planning.hardware import ACCELERATORS, Gpus, parse_gpus
from fourstage.planning.memory import largest_micro_batch, rollout_memory, training_memory
from fourstage.planning.published import CHINCHILLA, RUNS, compute_optimal_params
from fourstage.planning.shapes import Target, shape_for
from fourstage.recipe import STAGES, load, recipe_from, shipped

GPT3 = [run for run in RUNS if run.model.startswith("GPT-3")]
LLAMA = [run for run in RUNS if "LaMA" in run.model]
SMALL = ModelConfig(860, 128, 4, 4, 4, 352, 256)
params = st.floats(1e3, 1e13)


@pytest.mark.parametrize("run", GPT3, ids=lambda run: run.model)
def test_learning_rate_is_the_published_one_at_the_published_sizes(run):
    assert rules.learning_rate(run.params).value == pytest.approx(run.learning_rate, rel=0.02)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_batch_lies_between_what_gpt3_and_llama_took(run):
    batch = rules.batch_tokens(run.params).value
    assert run.batch_tokens / 1.7 <= batch <= 1.7 * run.batch_tokens
    assert 0.5e6 <= batch <= 4e6


@pytest.mark.parametrize(("size", "tokens"), CHINCHILLA)
def test_tokens_and_size_are_those_of_chinchilla(size, tokens):
    assert rules.pretraining_tokens(size).value == pytest.approx(tokens, rel=0.05)
    assert compute_optimal_params(six_nd(size, tokens)) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("run", LLAMA, ids=lambda run: run.model)
def test_gpu_hours_at_the_usual_utilisation_are_near_the_published_ones(run):
    assert run.accelerator and run.gpu_hours
    flops = six_nd(run.params, run.tokens)
    accelerator = ACCELERATORS[run.accelerator.lower()]
    assert Gpus(8, accelerator).hours(flops) == pytest.approx(run.gpu_hours, rel=0.25)
    reached = utilisation(flops, 3600 * run.gpu_hours, accelerator.peak_flops)
    assert 0.3 < reached < 0.6


@pytest.mark.parametrize("run", [run for run in GPT3 if run.flops], ids=lambda run: run.model)
def test_gpt3_flops_are_six_a_parameter_and_token(run):
    assert six_nd(run.params, run.tokens) == pytest.approx(run.flops, rel=0.03)


@given(params, st.floats(1, 100))
@example(1.3e9, 5.0)
def test_rates_never_rise_with_size(size, factor):
    larger = size * factor
    for rule in (rules.learning_rate, rules.sft_rate, rules.reward_rate, rules.rl_rate):
        assert rule(larger).value <= rule(size).value <= 8e-3
    by_muon = [rules.learning_rate(each, "muon").value for each in (size, larger)]
    assert by_muon[1] <= by_muon[0] <= 3e-2
    assert all(
        rules.learning_rate(each).value <= rate
        for each, rate in zip((size, larger), by_muon, strict=True)
    )


@given(params, st.floats(1, 100))
def test_batches_tokens_and_episodes_never_fall_with_size(size, factor):
    larger = size * factor
    for rule in (rules.batch_tokens, rules.pretraining_tokens, rules.episodes):
        assert rule(size).value <= rule(larger).value
    assert rules.pairs_per_step(size).value <= rules.pairs_per_step(larger).value


@given(st.floats(1e4, 1e12))
def test_a_batch_leaves_the_data_about_a_thousand_steps_or_is_as_small_as_batches_get(tokens):
    batch = rules.batch_tokens(1e9, tokens).value
    assert batch <= 520 or tokens / batch >= 750


@given(st.floats(1e4, 1e8), st.sampled_from([64, 256]))
def test_two_workers_get_as_many_rows_each(size, context):
    batch = rules.batch_tokens(size, context=context).value
    assert not 2 * context <= batch <= 31 * 2 * context or batch % (2 * context) == 0


def optimiser_of(**given) -> str:
    return resolve(recipe_from({"data": {"pretrain": "world"}} | given))[0].pretrain.optimiser


def test_a_small_new_model_is_trained_by_muon_and_others_by_adamw():
    assert optimiser_of() == "muon"
    assert optimiser_of(model={"params": 200_000_000}) == "adamw"
    assert optimiser_of(pretrain={"from": "folder"}) == "adamw"
    # Of so small a batch most work would be Muon's.
    assert optimiser_of(model={"params": 30_000_000}, pretrain={"batch_tokens": 2048}) == "adamw"
    assert optimiser_of(pretrain={"optimiser": "adamw8bit"}) == "adamw8bit"
    recipe, derived = resolve(recipe_from({"data": {"pretrain": "world"}}))
    assert {recipe.stage(stage).optimiser for stage in STAGES[1:]} == {"adamw"}
    assert recipe.pretrain.learning_rate == rules.learning_rate(recipe.model.params, "muon").value
    assert "pretrain.optimiser" in {each.key for each in derived}


def test_a_text_is_passed_over_four_times_at_most():
    assert rules.pretraining_tokens(1e9, available=1e9).value == 4e9
    assert "4 epochs" in rules.pretraining_tokens(1e9, available=1e9).rule
    assert rules.pretraining_tokens(1e6, available=1e9).value == 20e6


@given(st.integers(1, 10**6))
def test_warm_up_takes_no_more_than_a_tenth(steps):
    assert 0 <= rules.warmup_steps(steps).value <= min(2000, steps / 10)


@pytest.mark.parametrize("run", LLAMA, ids=lambda run: run.model)
def test_published_shapes_are_counted_exactly(run):
    kv_heads = 8 if run.model == "Llama-2-70B" else run.heads
    shape = ModelConfig(
        run.vocab_size, run.width, run.layers, run.heads, kv_heads, run.mlp_width, run.context,
        qk_norm=False,
    )  # fmt: skip
    assert shape.parameters() == run.params


@given(st.floats(3e4, 1e12))
def test_a_shape_has_the_parameters_asked_for(size):
    vocabulary = 320 if size < 1e6 else 32000 if size > 1e8 else 860
    shape = shape_for(Target(size, vocabulary, 256))
    assert abs(math.log(shape.parameters() / size)) < 0.35
    if size > 1e6:
        assert abs(math.log(shape.parameters() / size)) < 0.12


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@given(st.integers(1, 10**6), st.integers(2, 512), st.integers(2, 512))
def test_memory_grows_with_the_micro_batch_and_falls_with_shards(device, tokens, factor, shards):
    whole = training_memory(SMALL, tokens, device=device)
    assert training_memory(SMALL, tokens * factor, device=device).total > whole.total
    shared = training_memory(SMALL, tokens, device=device, shards=shards)
    assert shared.total < whole.total
    assert shared.optimiser == whole.optimiser / shards


def test_state_takes_sixteen_bytes_a_parameter_and_a_copy_in_bf16_on_a_gpu():
    count = SMALL.parameters()
    for device, bytes_each in (("cpu", 16), ("cuda", 18)):
        memory = training_memory(SMALL, 1, device=device)
        assert memory.weights + memory.gradients + memory.optimiser == bytes_each * count
    frozen = training_memory(SMALL, 1, frozen_models=2).others
    assert frozen == 2 * 4 * count


def test_a_key_value_cache_holds_two_numbers_a_layer_width_row_and_token():
    assert rollout_memory(SMALL, 64, 100) == 2 * 4 * 128 * 64 * 100 * 4
    assert rollout_memory(SMALL, 64, 100, device="cuda") == rollout_memory(SMALL, 64, 100) / 2


@given(st.floats(1e7, 1e11))
@example(8430786560.0)  # logits are kept just below what fits, and no longer just above it
def test_the_largest_micro_batch_fits_and_a_larger_one_would_not(budget):
    fits = largest_micro_batch(SMALL, budget)
    if fits:
        assert training_memory(SMALL, fits).total <= budget
    assert training_memory(SMALL, fits * 1.05 + 2).total > budget or fits >= 2**26


def test_ppo_trains_two_models_where_grpo_trains_one():
    ppo, grpo = (rl_work(100, 16, 18, 1, 10, has_critic) for has_critic in (True, False))
    assert ppo.trained == grpo.trained == ppo.trained_scalar == 100 * 33
    assert grpo.trained_scalar == 0
    assert ppo.generated == grpo.generated == 1800
    assert ppo.scored_scalar == 2 * grpo.scored_scalar


def test_every_pass_over_the_rollouts_is_trained_and_drawn_once():
    recipe, _ = resolve(load("quickstart"))
    twice, _ = resolve(load("quickstart", ["rl.epochs=2"]))
    rows = row_tokens(recipe)
    once, more = training_work(recipe, "rl", rows), training_work(twice, "rl", rows)
    assert more.trained == 2 * once.trained and more.updates == 2 * once.updates
    assert more.generated == once.generated


@pytest.mark.parametrize("name", shipped())
def test_resolving_fills_all_says_why_and_is_done_once(name):
    recipe, derived = resolve(load(name))
    assert all(each.rule and each.value is not None for each in derived)
    assert len({each.key for each in derived}) == len(derived)
    again, nothing_more = resolve(recipe)
    assert again == recipe and nothing_more == []
    for stage in STAGES:
        section = recipe.stage(stage)
        assert section.steps and section.learning_rate and section.micro_batch_tokens


def test_what_is_written_stays():
    given_values = ["pretrain.learning_rate=1e-4", "rl.episodes=640", "model.width=96"]
    recipe, derived = resolve(load("quickstart", given_values))
    assert recipe.pretrain.learning_rate == 1e-4
    assert recipe.rl.episodes == 640 and recipe.model.width == 96
    told = {each.key for each in derived}
    assert not told & {"pretrain.learning_rate", "rl.episodes", "model.width"}


def test_the_embedded_world_has_no_words_for_a_large_vocabulary():
    world = {"data": {"pretrain": "world"}, "model": {"params": 10_000_000}}
    assert resolve(recipe_from(world))[0].tokenizer.vocab_size == 860
    text = {"data": {"pretrain": "text"}, "model": {"params": 10_000_000}}
    assert (resolve(recipe_from(text))[0].tokenizer.vocab_size or 0) > 860
    known = resolve(recipe_from(world), DataFacts(vocab_size=700))[0]
    assert model_config(known).vocab_size == 700


def test_a_shape_from_outside_is_kept():
    parent = dataclasses.replace(SMALL, vocab_size=1000)
    recipe, _ = resolve(recipe_from({"sft": {"from": "folder"}}), DataFacts(model=parent))
    assert model_config(recipe) == parent


def test_accelerators_are_read_as_people_write_them():
    assert parse_gpus("8xH100") == parse_gpus(" 8 h100 ") == Gpus(8, ACCELERATORS["h100"])
    assert parse_gpus("A100").count == 1
    assert Gpus(8, ACCELERATORS["h100"]).cost(989e12 * 0.4 * 3600, 2.5) == pytest.approx(2.5)
