"""Where time and memory go: parts that sum up to the whole, counted as they are."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import InputError
from fourstage.planning import model_config, resolve
from fourstage.planning.facts import row_tokens
from fourstage.planning.memory import optimiser_bytes
from fourstage.profiling import stopwatch
from fourstage.profiling.bench import bench, with_batches_of
from fourstage.profiling.instruments import (
    PARTS,
    WAITED,
    WatchedObjective,
    WatchedSource,
    instrumented,
)
from fourstage.profiling.made import made
from fourstage.profiling.memory import activation_bytes, bytes_of, peak_bytes
from fourstage.profiling.stopwatch import REST, Stopwatch
from pipeline_support import STAGES, hurried, tiny
from training_support import TinySource, same_bits, tiny_model, trainer, weights_of

CPU = torch.device("cpu")


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


Sections = st.recursive(
    st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.just(())),
    lambda inner: st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.lists(inner, max_size=3)),
    max_leaves=8,
)


@given(st.lists(Sections, max_size=4))
def test_every_second_counts_once_and_for_the_innermost_section(sections):
    clock, expected = Clock(), {}

    def pass_through(section, watch):
        name, ticks, inner = section
        with watch.section(name):
            clock.now += ticks
            expected[name] = expected.get(name, 0) + ticks
            for each in inner:
                pass_through(each, watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "time", clock)
        watch = Stopwatch()
        watch.start()
        for each in sections:
            pass_through(each, watch)
            clock.now += 1
        watch.stop()
    assert watch.total == clock.now
    assert watch.seconds.pop(REST) == len(sections)
    assert {name: s for name, s in watch.seconds.items() if s} == {
        name: ticks for name, ticks in expected.items() if ticks
    }


def test_other_threads_and_a_stopped_watch_are_not_counted():
    watch = Stopwatch()

    def beside() -> None:
        with watch.section("beside"):
            time.sleep(0.01)

    beside()
    watch.start()
    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    watch.stop()
    assert list(watch.seconds) == [REST]


def timed(tmp_path, source=None, steps: int = 8, warm_up: int = 2):
    """A watch after training in the tests' own trainer, and the model."""
    watch, model = Stopwatch(), tiny_model()
    from fourstage.objectives.next_token import NextToken

    running = trainer(
        tmp_path,
        model,
        WatchedSource(source or TinySource(), watch, warm_up),
        objective=WatchedObjective(NextToken(), watch),
        steps=steps,
    )
    with instrumented(model, watch):
        running.train()
    watch.stop()
    return watch, model


def test_the_parts_of_a_step_are_found_where_they_are(tmp_path):
    watch, _ = timed(tmp_path, TinySource(pause=0.03), steps=8, warm_up=2)
    assert watch.seconds["data"] >= 6 * 0.03
    forward = {"attention", "mlp", "other_forward", "head_and_loss"}
    others = {"data", "backward", "optimiser", "checkpoint", WAITED, REST}
    assert forward | others == set(watch.seconds)
    assert all(seconds > 0 for seconds in watch.seconds.values())


def test_instruments_change_no_bit_and_are_taken_off(tmp_path):
    plain = tiny_model()
    before = torch.autograd.backward
    trainer(tmp_path / "plain", plain, TinySource(), steps=8).train()
    _, watched = timed(tmp_path / "watched")
    assert same_bits(weights_of(plain), weights_of(watched))
    assert torch.autograd.backward is before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in watched.modules())


# A whole bench


def resolved(*overrides: str):
    recipe, _ = resolve(tiny(*overrides))
    return recipe, model_config(recipe)


@pytest.fixture(scope="module")
def found():
    recipe, config = resolved()
    with hurried():
        return bench(recipe, config, STAGES, CPU, seconds=0.05)


def test_the_parts_of_every_stage_sum_up_to_its_step(found):
    assert [each.stage for each in found.stages] == list(STAGES)
    for each in found.stages:
        assert tuple(each.parts) == PARTS
        assert sum(each.parts.values()) == pytest.approx(each.profiled_seconds)
        assert each.parts["backward"] > 0 and each.parts["attention"] > 0
        drawn = each.parts["rollout"] > 0 and each.parts["scoring"] > 0
        assert drawn == (each.stage == "rl")


def test_speed_is_tokens_and_operations_over_the_seconds_of_a_step(found):
    pretrain = found.stages[0]
    assert pretrain.tokens_per_step == pytest.approx(960, rel=0.2)
    assert pretrain.tokens_per_second == pytest.approx(
        pretrain.tokens_per_step / pretrain.step_seconds
    )
    a_token = found.config.flops_per_token(row_tokens(resolved()[0]).document / 2)
    assert pretrain.flops_per_second == pytest.approx(a_token * pretrain.tokens_per_second, rel=0.1)
    assert found.ceiling > pretrain.flops_per_second


def test_what_a_step_holds_is_counted_exactly_and_lies_near_the_plan(found):
    size = 4 * found.config.parameters()
    for each, optimiser in zip(found.stages[:2], ("muon", "adamw"), strict=True):
        held = each.held
        assert held.weights == held.gradients == size
        assert held.optimiser == pytest.approx(optimiser_bytes(found.config, optimiser), rel=0.01)
        assert held.frozen == 0
    assert found.stages[3].held.frozen > found.stages[0].held.weights
    for each in found.stages:
        held = each.held
        assert held.peak > held.weights + held.optimiser + held.frozen + held.activations
        assert each.predicted.total == pytest.approx(held.peak, rel=0.4)


def test_the_report_has_the_keys_that_it_promises(found):
    told = found.to_json()
    assert set(told) == {
        "device",
        "torch",
        "parameters",
        "shape",
        "ceiling_flops_per_second",
        "data_sheet_flops_per_second",
        "stages",
    }
    for stage in STAGES:
        assert set(told["stages"][stage]) == {
            "tokens_per_step",
            "tokens_per_second",
            "model_flops_per_second",
            "share_of_ceiling",
            "mfu",
            "step_seconds",
            "profiled_step_seconds",
            "parts_seconds",
            "checkpoint_seconds",
            "memory_bytes",
            "predicted_memory_bytes",
        }
        assert set(told["stages"][stage]["memory_bytes"]) <= {
            *told["stages"][stage]["predicted_memory_bytes"],
            "frozen",
        }
        assert 0 < told["stages"][stage]["share_of_ceiling"] < 1


def test_what_draws_no_rollouts_is_not_measured_as_if_it_did():
    recipe, config = resolved("rl.algorithm=dpo")
    with pytest.raises(InputError, match="dpo is not timed"):
        bench(recipe, config, ["rl"], CPU, seconds=0.02)


def test_grpo_is_measured_without_a_critic():
    recipe, config = resolved("rl.algorithm=grpo", "rl.group=4", "rl.rollout_batch=16")
    with hurried():
        (stage,) = bench(recipe, config, ["rl"], CPU, seconds=0.02).stages
    assert stage.held.weights == 4 * config.parameters()
    assert stage.parts["rollout"] > 0


def test_adapters_and_frozen_weights_are_measured_as_they_train():
    recipe, config = resolved(
        "rl.adapter.rank=2", "rl.adapter.base=nf4", "sft.freeze=model.embed_tokens.*"
    )
    with hurried():
        sft, rl = bench(recipe, config, ["sft", "rl"], CPU, seconds=0.02).stages
    table = 4 * config.vocab_size * config.width
    assert sft.held.gradients == sft.held.weights - table
    assert rl.held.gradients < 0.5 * rl.held.weights < 4 * config.parameters()
    # The reward model; the policy is its own reference.
    assert rl.held.frozen == 4 * (config.parameters() + config.width)
    for each in (sft, rl):
        assert each.predicted.total == pytest.approx(each.held.peak, rel=0.4)


def test_a_step_too_large_to_be_waited_for_is_cut():
    recipe, _ = resolved(
        "pretrain.batch_tokens=1M",
        "sft.batch_tokens=1M",
        "reward.pairs_per_step=4k",
        "rl.rollout_batch=4096",
        "rl.minibatches=4",
    )
    smaller = with_batches_of(recipe, 2000)
    assert smaller.pretrain.batch_tokens == smaller.sft.batch_tokens == 2000
    assert 1 <= smaller.reward.pairs_per_step < 100
    rows = row_tokens(recipe)
    assert smaller.rl.rollout_batch * (rows.prompt + rows.response) / 4 <= 2000
    assert with_batches_of(smaller, 10**9) == smaller


def test_activations_grow_with_the_batch_and_hold_no_weight(tmp_path):
    watch = Stopwatch()
    recipe, config = resolved()
    parts = made("pretrain", recipe, config, CPU, tmp_path, watch)
    batch = parts.source.batch(0)
    half = batch.select(range(len(batch.lengths) // 2))
    whole, less = (activation_bytes(parts.module, parts.objective, b) for b in (batch, half))
    joined = 4 * config.layers * config.width * (3 * config.width + 2 * config.mlp_width)
    rate = (whole - less) / (batch.cells - half.cells)
    assert less - rate * half.cells == pytest.approx(joined, rel=0.35)
    assert whole > 4 * batch.cells * config.width * config.layers


def test_the_peak_is_that_of_what_is_held_at_once():
    def held(number: int) -> None:
        kept = [torch.empty(250_000) for _ in range(number)]
        del kept

    def in_turn() -> None:
        for _ in range(5):
            held(1)

    assert peak_bytes(lambda: held(3), CPU) == pytest.approx(3e6, rel=0.01)
    assert peak_bytes(in_turn, CPU) == pytest.approx(1e6, rel=0.01)
    tensor = torch.empty(100)
    assert bytes_of([tensor, tensor.view(10, 10), tensor[:5]]) == 400
