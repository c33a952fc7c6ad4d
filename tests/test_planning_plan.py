"""What is planned is what a run counts, and the largest model of a time fits that time."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from fourstage.errors import InputError
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.planning import DataFacts, resolve
from fourstage.planning.budget import WORLD_TOKENS, fit, written
from fourstage.planning.facts import row_tokens
from fourstage.planning.flops import mean_context, muon_flops
from fourstage.planning.hardware import parse_gpus
from fourstage.planning.plan import make_plan, measured_plan
from fourstage.planning.published import compute_optimal_tokens
from fourstage.planning.speed import Speed, Trial, from_gpus, measure
from fourstage.recipe import STAGES, load, recipe_from, shipped
from fourstage.reporting.runfiles import read_run
from fourstage.reporting.sections.plan import planned, section
from fourstage.training.cost import TrainingCost
from fourstage.training.optimiser import Optimiser
from fourstage.training.settings import TrainSettings
from reporting_run import write_run

CPU = torch.device("cpu")
REFERENCE = ModelConfig(860, 128, 4, 4, 4, 352, 256)
# About what a CPU core gives at the reference shape.
SPEED = Speed("a core", 4e10, 5e10, 4000.0, 0.003, "measured")


def speed_of(recipe, config):
    return SPEED.scaled(REFERENCE, config)


def plan_of(name, *overrides, speed=SPEED, **facts):
    return make_plan(load(name, overrides), DataFacts(**facts), speed)


def test_flops_of_pretraining_are_the_configs_own_count():
    plan = plan_of("quickstart")
    cells = row_tokens(plan.recipe).document - 1
    stage = plan.stages["pretrain"]
    assert stage.tokens == plan.recipe.pretrain.steps * plan.recipe.pretrain.batch_tokens
    assert stage.flops == stage.tokens * plan.config.flops_per_token(mean_context(cells))


@pytest.mark.parametrize("options", [{}, {"gated": False}, {"experts": 4}])
def test_flops_of_muon_are_those_it_computes(options):
    gated = options.pop("gated", True)
    config = ModelConfig(
        50, 32, 2, 4, 2, 80, 64, activation="swiglu" if gated else "gelu", **options
    )
    module = Transformer(config)
    optimiser = Optimiser(module, TrainSettings(steps=1, learning_rate=0.1, optimiser="muon"))
    optimiser.gradients()
    with FlopCounterMode(display=False) as counter:
        optimiser.step(0.1)
    assert counter.get_total_flops() == muon_flops(config)


def test_an_update_by_muon_is_planned_as_other_work():
    muon, adamw = (plan_of("quickstart", f"pretrain.optimiser={o}") for o in ("muon", "adamw"))
    stage, without = muon.stages["pretrain"], adamw.stages["pretrain"]
    assert stage.flops == without.flops
    assert stage.other_flops - without.other_flops == pytest.approx(
        stage.steps * muon_flops(muon.config)
    )
    assert stage.training > 1.1 * without.training
    assert muon.stages["sft"] == adamw.stages["sft"]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_flops_of_every_stage_are_those_the_trainer_counts(algorithm):
    plan = plan_of("smoke", f"rl.algorithm={algorithm}", "rl.group=8")
    rows, policy = row_tokens(plan.recipe), Transformer(plan.config)
    scorer = Transformer(plan.config, head="scalar")
    critic = scorer if algorithm == "ppo" else None
    cases = {
        "pretrain": (policy, rows.document - 1),
        "sft": (policy, rows.demonstration - 1),
        "reward": (scorer, rows.compared),
        "rl": (ActorCritic(policy, critic), rows.prompt + rows.response - 1),
    }
    for stage, (module, cells) in cases.items():
        entry = plan.stages[stage]
        a_document = TrainingCost(module)([int(cells)])
        assert entry.flops == pytest.approx(entry.tokens / cells * a_document)


def test_a_recipe_is_planned_alike_before_and_after_it_is_resolved():
    recipe = load("own-text")
    before = make_plan(recipe, DataFacts(), SPEED)
    after = make_plan(resolve(recipe)[0], DataFacts(), SPEED)
    assert before.stages == after.stages and before.seconds == after.seconds
    assert before.derived and not after.derived


def test_a_machine_twice_as_fast_takes_half_the_time_of_a_stage():
    fast = Speed("two cores", 8e10, 1e11, 8000.0, 0.0015, "measured")
    slow, quick = plan_of("quickstart"), plan_of("quickstart", speed=fast)
    for stage in STAGES:
        assert quick.stages[stage].measuring == pytest.approx(slow.stages[stage].measuring / 2)
        assert quick.stages[stage].training < 0.55 * slow.stages[stage].training


def test_more_tokens_episodes_and_items_to_measure_take_longer():
    base = plan_of("smoke").stages
    assert plan_of("smoke", "pretrain.tokens=240k").stages["pretrain"].training > (
        1.5 * base["pretrain"].training
    )
    assert plan_of("smoke", "rl.episodes=512").stages["rl"].training > 1.5 * base["rl"].training
    for stage, override in (
        ("pretrain", "evaluation.documents=1000"),
        ("sft", "evaluation.instructions=640"),
        ("reward", "evaluation.pairs=640"),
        ("rl", "evaluation.prompts=640"),
    ):
        assert plan_of("smoke", override).stages[stage].measuring > base[stage].measuring


def test_stages_that_a_model_from_outside_replaces_are_not_planned():
    recipe = recipe_from({"sft": {"from": "folder"}, "rl": {"reward_model": "other"}})
    plan = make_plan(recipe, DataFacts(model=REFERENCE), SPEED)
    assert list(plan.stages) == ["sft", "rl"]
    assert plan.config == REFERENCE
    only = make_plan(recipe, DataFacts(model=REFERENCE), SPEED, stages=["sft"])
    assert list(only.stages) == ["sft"]


@pytest.mark.parametrize("name", shipped())
def test_totals_are_those_of_the_stages_and_all_is_finite(name):
    plan = plan_of(name)
    content = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    stages = content["stages"].values()
    assert content["totals"]["tokens"] == sum(stage["tokens"] for stage in stages)
    assert content["totals"]["memory_bytes"] == max(stage["memory_bytes"] for stage in stages)
    assert plan.seconds > sum(stage["seconds"] for stage in stages)
    assert all(stage[key] > 0 for stage in stages for key in ("seconds", "flops", "steps"))


def test_the_report_reads_the_plan_of_a_run(tmp_path):
    folder = write_run(tmp_path / "run")
    plan = plan_of("quickstart")
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    run = read_run(folder)
    for stage in STAGES:
        entry = planned(run, stage)
        assert entry["tokens"] == plan.stages[stage].tokens
        assert {"seconds", "tokens", "flops", "memory_bytes"} <= entry.keys()
    page = str(section(run))
    assert "Pretraining: time" in page and "Reinforcement learning: FLOP" in page
    assert all(each.key in page for each in plan.derived)


def test_memory_of_rl_holds_four_models_and_is_the_largest():
    plan = plan_of("quickstart", device="cuda", memory_bytes=80e9)
    assert plan.memory_bytes == plan.stages["rl"].memory_bytes
    grpo = plan_of("quickstart", "rl.algorithm=grpo", device="cuda", memory_bytes=80e9)
    assert grpo.stages["rl"].memory_bytes < plan.stages["rl"].memory_bytes
    assert plan.fits
    assert not plan_of("single-host", device="cuda", memory_bytes=16e9).fits


def test_data_sheets_promise_less_for_drawing_than_for_training():
    gpus = parse_gpus("8xH100")
    speed = from_gpus(gpus, REFERENCE, 256)
    assert speed.training == gpus.flops and speed.devices == 8
    large = dataclasses.replace(REFERENCE, width=4096, layers=32, heads=32, kv_heads=32)
    drawn = from_gpus(gpus, large, 256).generation * large.forward_flops_per_token(32)
    assert drawn < 0.2 * gpus.accelerator.peak_flops
    # However small the model, the kernels of its layers take their time.
    assert speed.generation < 256 / (REFERENCE.layers * 1e-4)


@pytest.fixture(scope="module")
def trial():
    return Trial(
        document_tokens=20,
        batch_tokens=128,
        rollout_rows=8,
        prompt_tokens=8,
        response_tokens=6.0,
    )


def test_measuring_gives_numbers_and_leaves_random_streams_alone(trial):
    tiny = ModelConfig(300, 32, 1, 2, 2, 64, 64)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    speed = measure(tiny, CPU, trial, seconds=0.05)
    assert torch.equal(before, torch.get_rng_state())
    for value in (speed.training, speed.forward, speed.generation, speed.step_seconds):
        assert 0 < value < math.inf
    assert speed.source == "measured" and "cpu" in speed.device


def test_a_shape_too_large_to_measure_is_measured_smaller_and_scaled(trial):
    huge = ModelConfig(50257, 12288, 96, 96, 96, 32768, 2048)
    speed = measure(huge, CPU, trial, seconds=0.05)
    assert 1e8 < speed.training < 1e15
    assert speed.generation * huge.forward_flops_per_token(256) < 1e15
    assert speed.generation < 1000


def test_several_processes_share_the_training_and_each_draws_for_itself(trial):
    tiny = ModelConfig(300, 32, 1, 2, 2, 64, 64)
    speed = measure(tiny, CPU, trial, devices=2, seconds=0.05)
    assert speed.devices == 2 and speed.device.startswith("2 x ")


def test_the_plan_of_a_run_on_this_machine():
    plan = measured_plan(load("smoke"), DataFacts(vocab_size=849), CPU)
    assert list(plan.stages) == list(STAGES)
    assert plan.config.vocab_size == 849
    assert 0 < plan.seconds < 3600


@pytest.mark.parametrize("seconds", [40, 600, 7200])
def test_what_fits_a_time_is_a_recipe_that_takes_that_time(seconds, tmp_path):
    fitted = fit(seconds, recipe_from({}), DataFacts(), speed_of)
    assert 0.7 * seconds < fitted.plan.seconds <= seconds
    path = tmp_path / "fitted.yaml"
    path.write_text(yaml.safe_dump(written(fitted.recipe)))
    recipe = load(path)
    recipe.require_data()
    again = make_plan(recipe, DataFacts(), speed_of(recipe, fitted.plan.config))
    assert again.config == fitted.plan.config
    assert again.seconds == pytest.approx(fitted.plan.seconds)
    size, tokens = again.config.parameters(), again.stages["pretrain"].tokens
    assert 0.7 * compute_optimal_tokens(size) < tokens < 2.5 * compute_optimal_tokens(size)


def test_more_time_gives_a_larger_model():
    sizes = [
        fit(seconds, recipe_from({}), DataFacts(), speed_of).plan.config.parameters()
        for seconds in (60, 300, 1500, 7200)
    ]
    assert sizes == sorted(sizes) and sizes[-1] > 5 * sizes[0]


def test_little_time_cuts_the_last_stages_and_says_so():
    fitted = fit(40, recipe_from({}), DataFacts(), speed_of)
    assert any("cut to" in note for note in fitted.notes)
    assert fitted.recipe.evaluation.documents < 2000
    rest = fitted.plan.seconds - fitted.plan.stages["pretrain"].seconds
    assert rest < 0.7 * 40


def test_what_is_given_stays_whatever_the_time():
    base = recipe_from({"seed": 3, "model": {"params": 200_000}, "rl": {"algorithm": "grpo"}})
    recipe = fit(600, base, DataFacts(), speed_of).recipe
    assert recipe.seed == 3 and recipe.model.params == 200_000 and recipe.rl.algorithm == "grpo"
    sized = recipe_from({"model": {"layers": 2, "width": 64}})
    assert fit(300, sized, DataFacts(), speed_of).plan.config.width == 64


def test_a_small_text_limits_the_model_and_is_said():
    base = recipe_from({"data": {"pretrain": "text"}})
    fitted = fit(86400, base, DataFacts(text_bytes=3_000_000), speed_of)
    # At 1.7 bytes a token of the smallest vocabulary.
    assert fitted.plan.stages["pretrain"].tokens <= 4 * 3_000_000 / 1.7
    assert any("used up" in note for note in fitted.notes)
    assert fitted.plan.config.parameters() < 400_000


def test_the_world_is_not_asked_for_more_than_it_has():
    fitted = fit(7 * 86400, recipe_from({"data": {"pretrain": "world"}}), DataFacts(), speed_of)
    assert fitted.plan.stages["pretrain"].tokens < 1.01 * WORLD_TOKENS


def test_no_time_is_refused_with_the_time_it_would_take():
    with pytest.raises(InputError, match=r"too short for all four stages.*about"):
        fit(2, recipe_from({}), DataFacts(), speed_of)
    with pytest.raises(InputError, match="do not fit"):
        fit(60, recipe_from({"model": {"params": 10**9}}), DataFacts(), speed_of)


@pytest.mark.parametrize(("gpus", "hours"), [("1xH100", 1), ("8xA100", 48)])
def test_a_cluster_gets_a_larger_model_within_its_memory_and_a_text_of_ones_own(gpus, hours):
    devices = parse_gpus(gpus)
    fitted = fit(
        hours * 3600,
        recipe_from({}),
        DataFacts(),
        lambda recipe, config: from_gpus(devices, config, recipe.rl.rollout_batch or 256),
        devices,
    )
    plan = fitted.plan
    assert 0.7 * hours * 3600 < plan.seconds <= hours * 3600
    assert plan.fits and plan.config.parameters() > 20e6
    assert plan.device_hours == pytest.approx(plan.seconds * devices.count / 3600)
    assert fitted.recipe.data.pretrain is None
    assert any("data.pretrain=FOLDER" in note for note in fitted.notes)
