"""Runs whose last stage learns from comparisons or from its own best responses."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from data_texts import english
from fourstage.data.store import Store
from fourstage.errors import InputError
from fourstage.files import sha256_json
from fourstage.objectives.preferences import PREFERENCES
from fourstage.pipeline.lineage import section_hash
from fourstage.planning import DataFacts, resolve
from fourstage.planning.facts import row_tokens
from fourstage.planning.flops import measuring_work, training_work
from fourstage.planning.steps import frozen_models
from fourstage.recipe import load
from fourstage.recipe.preference import COMPARING, DISTILLING
from fourstage.reporting.batches import stage_batch
from pipeline_support import (
    folders,
    go,
    own_text,
    results,
    rows,
    tiny,
    touched,
    weights,
    whole_run,
)

OFFLINE = ("pretrain", "sft", "rl")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the whole run, to be changed."""
    return shutil.copytree(finished, tmp_path / "tiny")


def _labels(folder: Path, count: int = 60, good: int = 3) -> Path:
    """Judgements, of which one in `good` is good."""
    told = [
        {
            "prompt": f"What is {number} and one?",
            "completion": f"It is {number + (number % good == 0)}.",
            "label": number % good == 0,
        }
        for number in range(count)
    ]
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


def _told(folder: Path) -> list[dict]:
    """What stands beside the rows of a store."""
    store = Store.open(folder)
    return [store.row(index) for index in range(len(store))]


# What is needed, kept and repeated


def test_comparisons_need_no_reward_model_and_drawn_responses_do():
    assert tiny("rl.algorithm=dpo").needed() == [*OFFLINE]
    assert tiny("rl.algorithm=kto").needed() == [*OFFLINE]
    assert "reward" in tiny("rl.algorithm=dpo", "rl.online=true").needed()
    for algorithm in DISTILLING:
        assert "reward" in tiny(f"rl.algorithm={algorithm}").needed()
    outside = ("rl.reward_model=somewhere", "rl.online=true")
    assert "reward" not in tiny("rl.algorithm=dpo", *outside).needed()


def test_a_run_by_comparisons_is_measured_as_others_are_and_kept(run):
    before = touched(run, ["pretrain", "sft", "reward"])
    said = go(tiny("rl.algorithm=dpo"), run)
    assert "reward: left out, dpo learns from comparisons themselves" in said
    told = " ".join(said)
    assert "Reinforcement learning" in told and "Reward modelling" not in told
    assert touched(run, ["pretrain", "sft", "reward"]) == before
    found = results(run, "rl")["metrics"]
    for name in ("gold_reward_sft", "gold_reward", "proxy_reward", "kl", "task_success"):
        assert name in found
    assert {"distinct_1_rl", "distinct_1_sft", "preference_accuracy"} <= found.keys()
    last = rows(run, "rl")[-1]
    assert {"margin", "accuracy", "validation_loss", "validation_accuracy"} <= last.keys()
    after = touched(run)
    assert [line for line in go(tiny("rl.algorithm=dpo"), run) if line.endswith("kept")]
    assert touched(run) == after
    shutil.rmtree(run / "data")
    go(tiny("rl.algorithm=dpo"), run)
    assert touched(run) == after, "finished stays finished without its data"


def test_other_comparisons_repeat_the_stage_that_reads_them_alone(run):
    go(tiny("rl.algorithm=ipo"), run)
    go(tiny("rl.algorithm=ipo", "data.comparisons=60"), run)
    # The first change of all was that of the algorithm.
    assert {"rl.1", "rl.2"} <= folders(run) and not {"sft.1", "reward.1"} & folders(run)


def test_a_run_without_a_reward_model_has_no_proxy_and_draws_the_same(run, tmp_path):
    bare = shutil.copytree(run, tmp_path / "bare")
    shutil.rmtree(bare / "reward")
    for folder in (run, bare):
        go(tiny("rl.algorithm=dpo"), folder)
    assert weights(bare)["rl"] == weights(run)["rl"]
    found = results(bare, "rl")["metrics"]
    assert "proxy_reward" not in found and "gold_reward" in found


def test_comparisons_made_from_text_are_drawn_when_the_stage_runs(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(english(250))
    amounts = ("data.demonstrations=60", "data.comparisons=40", "data.rl_prompts=40")
    recipe = own_text(tmp_path / "texts", *amounts, "rl.algorithm=hinge", "rl.steps=null")
    go(recipe, tmp_path / "run")
    assert folders(tmp_path / "run") == {*OFFLINE}
    assert results(tmp_path / "run", "rl")["metrics"]["steps"] == 5, "40 comparisons by 8"


# Single judgements


def test_single_judgements_are_learned_from_by_kto_alone(run, tmp_path):
    labels = f"data.preferences={_labels(tmp_path)}"
    said = go(tiny("rl.algorithm=kto", labels, "rl.preference.pairs_per_step=8"), run)
    told = next(line for line in said if "rl.preference.desirable" in line)
    assert "desirable = 2" in told or "desirable = 1.9" in told or "desirable = 2." in told
    found = results(run, "rl")["metrics"]
    assert "preference_accuracy" not in found, "there are no pairs to order"
    assert {"reward_desirable", "validation_loss"} <= rows(run, "rl")[-1].keys()
    with pytest.raises(InputError, match=r"algorithm=kto and reward\.objective=binary learn"):
        go(tiny("rl.algorithm=dpo", labels), run)


def test_held_out_judgements_of_one_prompt_are_not_watched(run, tmp_path):
    path = _labels(tmp_path, 15)
    said = go(tiny("rl.algorithm=kto", f"data.preferences={path}"), run)
    assert any(line.endswith("1 held out, from files") for line in said)
    assert "validation_loss" not in rows(run, "rl")[-1]


def test_judgements_of_one_kind_are_refused(run, tmp_path):
    labels = f"data.preferences={_labels(tmp_path, good=1)}"
    with pytest.raises(InputError, match="calls all its responses good"):
        go(tiny("rl.algorithm=kto", labels), run)


def test_a_reward_model_is_not_trained_on_single_judgements(run, tmp_path):
    labels = f"data.preferences={_labels(tmp_path)}"
    with pytest.raises(InputError, match="a reward model needs comparisons"):
        go(tiny("rl.algorithm=kto", labels), run, only="reward")


def test_judgements_serve_kto_and_a_reward_model_of_thumbs_in_one_run(run, tmp_path):
    told = (f"data.preferences={_labels(tmp_path)}", "reward.objective=binary", "reward.ties=drop")
    counted = ("reward.steps=null", "rl.steps=null", "reward.epochs=1", "rl.epochs=1")
    recipe = tiny("rl.algorithm=kto", "rl.preference.pairs_per_step=8", *counted, *told)
    go(recipe, run)
    go(recipe, run, only="reward")
    labels = [row["label"] for row in _told(run / "data/reward/labelled/train")]
    thumbs = [row["labels"][""] for row in _told(run / "data/reward/train")]
    assert [label == 1 for label in labels] == [thumb == 1.0 for thumb in thumbs]
    assert set(labels) == {1, -1}
    assert "label_accuracy" in results(run, "reward")["metrics"]
    # Each thumb once: a reward model reads 8 of them a step, KTO 16.
    resolved = load(str(run / "recipe.yaml"))
    assert resolved.reward.steps == math.ceil(len(thumbs) / 8)
    assert resolved.rl.steps == math.ceil(len(labels) // 2 / 8)


def test_rankings_are_compared_pair_by_pair(run, tmp_path):
    ranked = [
        {"prompt": f"Say {n}.", "responses": [f"{n}", f"{n + 1}", "No."], "ranks": [1, 2, 3]}
        for n in range(60)
    ]
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ranked))
    go(tiny("rl.algorithm=dpo", f"data.preferences={path}"), run)
    batch, _ = stage_batch(run, "rl", 0)
    assert len(batch.lengths) % 2 == 0
    elements = len({row["group"] for row in _told(run / "data/reward/train")})
    facts = json.loads((run / "run.json").read_text())["stages"]["rl"]["facts"]
    assert facts["preferences"] == 3 * elements


@pytest.mark.parametrize(
    "told",
    [("rl.algorithm=raft", "rl.distil.n=4"), ("rl.algorithm=dpo", "rl.online=true", "rl.group=4")],
    ids=["raft", "online"],
)
def test_the_best_may_be_found_by_rewards_without_a_reward_model(run, told):
    shutil.rmtree(run / "reward")
    go(tiny(*told, "rl.rewards=missing_end"), run)
    assert not (run / "reward").exists()
    assert "proxy_reward" in results(run, "rl")["metrics"]
    assert any(name.startswith("reward/") for name in rows(run, "rl")[-1])


# Rules and refusals


# A reward model that is one model.
PLAIN = ["reward.likelihood=false"]


def test_the_plan_counts_every_pass_that_a_score_takes():
    def scored(*overrides: str) -> tuple[float, float]:
        recipe = resolve(load("quickstart", [*PLAIN, "rl.algorithm=grpo", *overrides]))[0]
        work = training_work(recipe, "rl", row_tokens(recipe))
        return work.scored, work.scored_scalar

    language, once = scored()
    assert scored("reward.likelihood=true") == pytest.approx((language + once, once))
    assert scored("reward.ensemble=3") == pytest.approx((language, 3 * once))
    assert scored("rl.watch_model=elsewhere") == pytest.approx((language, 2 * once))
    plain, several = (
        measuring_work(recipe, "reward", row_tokens(recipe))
        for more in ([], ["reward.ensemble=3", "reward.likelihood=true"])
        for recipe in [resolve(load("quickstart", [*PLAIN, *more]))[0]]
    )
    assert several.scored_scalar > 3 * plain.scored_scalar and several.scored > 0 == plain.scored


@pytest.mark.parametrize("likelihood", [False, True])
def test_the_plan_counts_the_chat_model_that_a_score_is_trained_beside(likelihood):
    told = f"reward.likelihood={str(likelihood).lower()}"
    recipe = resolve(load("quickstart", [told]))[0]
    work = training_work(recipe, "reward", row_tokens(recipe))
    assert work.trained_scalar > 0
    assert work.scored == (work.trained_scalar if likelihood else 0)
    assert frozen_models(recipe, "reward", "cuda") == int(likelihood)


def test_text_that_nothing_prepares_is_not_mixed_in():
    mixed = ("rl.pretraining_mix=0.5", "rl.from=elsewhere")
    tiny(*mixed).require_data()
    with pytest.raises(InputError, match=r"rl.pretraining_mix=0.5 mixes in") as refused:
        tiny(*mixed, "rl.reward_model=elsewhere").require_data()
    assert "\n" not in str(refused.value)


def test_a_stage_that_compares_nothing_has_the_hash_of_one_that_could_not():
    recipe = resolve(tiny())[0]
    section = recipe.to_dict()["rl"]
    unsaid = ("online", "preference", "distil", "step_rewards")
    unsaid += ("environment", "behind", "rollout_device", "engine")
    assert {section.pop(name) for name in unsaid} == {None}
    section = {name: v for name, v in section.items() if not name.endswith("_every")}
    for name in ("from", "reward_model", "micro_batch_tokens", "checkpoint_seconds"):
        del section[name]
    for name in ("watch_model", "keep_checkpoints", "adapter", "freeze"):
        del section[name]
    row = dataclasses.asdict(recipe.rl.row())
    section["row"] = {name: value for name, value in row.items() if name != "source"}
    assert section_hash(recipe, "rl") == sha256_json(section)


@pytest.mark.parametrize(
    ("algorithm", "online"),
    [*((name, None) for name in (*COMPARING, *DISTILLING)), *((name, True) for name in COMPARING)],
)
def test_what_is_left_out_is_filled_once_and_says_why(algorithm, online):
    told = [f"rl.algorithm={algorithm}", *(["rl.online=true"] if online else [])]
    told += [f"rl.{name}=null" for name in ("learning_rate", "rollout_batch", "minibatches")]
    recipe, derived = resolve(load("quickstart", [*told, "sft.learning_rate=null"]))
    keys = {each.key: each.rule for each in derived}
    assert recipe.rl.steps and recipe.rl.learning_rate
    again, nothing_more = resolve(recipe)
    assert again == recipe and nothing_more == []
    if algorithm in PREFERENCES:
        assert PREFERENCES[algorithm].source in keys["rl.preference.beta"]
        # A small model stays near its reference while it learns from what others wrote.
        wary = algorithm in ("dpo", "cdpo") and not online
        assert recipe.rl.preference.beta == (0.3 if wary else PREFERENCES[algorithm].beta)
    sft = recipe.sft.learning_rate or 0
    wanted = sft if algorithm == "orpo" else sft / (10 if online else 20)
    if algorithm in DISTILLING:
        wanted = resolve(load("quickstart"))[0].rl.learning_rate or 0
    assert recipe.rl.learning_rate == pytest.approx(wanted, rel=0.05)


def test_steps_are_one_pass_over_the_comparisons_that_are_there():
    recipe, _ = resolve(load("quickstart", ["rl.algorithm=dpo"]), DataFacts(comparisons=1600))
    assert recipe.rl.steps == 100
    twice, _ = resolve(
        load("quickstart", ["rl.algorithm=dpo", "rl.epochs=2"]), DataFacts(comparisons=1600)
    )
    assert twice.rl.steps == 200
    few, _ = resolve(load("quickstart", ["rl.algorithm=dpo", "rl.steps=7"]))
    assert few.rl.steps == 7


def test_rounds_and_responses_say_how_much_an_iteration_draws():
    told = ["rl.algorithm=raft", "rl.rollout_batch=null", "rl.minibatches=null"]
    recipe, _ = resolve(load("quickstart", [*told, "rl.distil.rounds=5", "rl.episodes=4000"]))
    assert (recipe.rl.rollout_batch, recipe.rl.group) == (800, 8)
    assert recipe.rl.steps == 5 * recipe.rl.minibatches
    recipe, _ = resolve(load("quickstart", [*told, "rl.distil.rounds=3", "rl.rollout_batch=64"]))
    assert recipe.rl.steps == 3 * recipe.rl.minibatches


def test_the_plan_counts_the_models_that_are_there():
    def models(*overrides: str) -> int:
        return frozen_models(resolve(load("quickstart", [*PLAIN, *overrides]))[0], "rl")

    assert models("rl.algorithm=dpo") == 1
    assert models("rl.algorithm=simpo") == 0, "its reference is asked before and after alone"
    assert models("rl.algorithm=simpo", "rl.online=true") == 2
    assert models("rl.algorithm=dpo", "rl.adapter.rank=4") == 0
    assert models("rl.algorithm=dpo", "rl.online=true") == 2
    assert models("rl.algorithm=raft") == 2
    assert models("rl.algorithm=raft", "reward.ensemble=3", "reward.likelihood=true") == 5
    assert models("rl.watch_model=somewhere") == 3
    recipe = resolve(load("quickstart", ["rl.algorithm=dpo"]))[0]
    work = training_work(recipe, "rl", row_tokens(recipe))
    assert work.scored == work.trained and not work.trained_scalar and not work.generated
    recipe = resolve(load("quickstart", [*PLAIN, "reward.ensemble=3"]))[0]
    assert (frozen_models(recipe, "reward"), frozen_models(recipe, "reward", "cuda")) == (3, 0)
    recipe = resolve(load("quickstart", ["rl.algorithm=simpo"]))[0]
    assert not training_work(recipe, "rl", row_tokens(recipe)).scored


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["rl.preference.beta=0.2"], "preference is of dpo, .*, not ppo"),
        (["rl.distil.n=4"], "distil is of bon and raft, not ppo"),
        (["rl.online=true"], "online=true is of dpo"),
        (["rl.algorithm=raft", "rl.online=true"], "draws responses anyway"),
        (["rl.algorithm=dpo", "rl.kl_target=6"], "kl_target is of policy optimisation"),
        (["rl.algorithm=bon", "rl.pretraining_mix=1"], "pretraining_mix is of policy optimisation"),
        (["rl.algorithm=ipo", "rl.preference.label_smoothing=0.1"], "write cdpo"),
        (["rl.algorithm=dpo", "rl.preference.gamma=1"], "gamma=1 is of simpo"),
        (["rl.algorithm=dpo", "rl.preference.desirable=1"], "desirable is not of dpo"),
        (["rl.algorithm=kto", "rl.preference.gamma=1"], "gamma is not of kto"),
        (["rl.algorithm=kto", "rl.preference.pairs_per_step=1"], "write 2 or more"),
        (["rl.algorithm=dpo", "rl.online=true", "rl.group=1"], "group=1 leaves nothing"),
        (
            ["rl.algorithm=dpo", "rl.online=true", "rl.preference.pairs_per_step=4"],
            "pairs_per_step=4 is of given comparisons",
        ),
        (["rl.algorithm=bon", "rl.distil.rounds=2"], "rounds is of raft"),
        (["rl.algorithm=raft", "rl.group=4", "rl.distil.n=8"], "leave group out"),
        (["rl.algorithm=raft", "rl.distil.n=4", "rl.distil.keep=5"], "write at most 4"),
        (["rl.algorithm=raft", "rl.group=1"], "nothing to choose: write distil.n=8"),
        (["rl.algorithm=dpo", "rl.rewards=math"], "rewards are not read by dpo"),
        (["rl.algorithm=dpo", "rl.clip_low=0.1"], "clip_low is of policy optimisation"),
        (["rl.algorithm=kto", "rl.overlong=leave_out"], "kto draws none"),
        (["rl.algorithm=dpo", "reward.objective=regression"], "objective=bradley_terry"),
        (["rl.algorithm=kto", "reward.objective=binary"], "objective=bradley_terry"),
        (
            ["rl.algorithm=dpo", "reward.heads.kind=1", "reward.heads.good=2"],
            "learns from one: leave them out",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_words(overrides, fault):
    with pytest.raises(InputError, match=fault):
        tiny(*overrides)


@pytest.mark.parametrize(
    ("told", "better"),
    [
        (["rl.algorithm=bon", "rl.rollout_batch=32"], "a multiple of 16, such as 64"),
        (["rl.algorithm=dpo", "rl.online=true", "rl.rollout_batch=30"], "of 8, such as 32"),
        (["rl.algorithm=kto", "rl.online=true", "rl.rollout_batch=32"], "of 8, such as 64"),
    ],
)
def test_more_steps_than_there_is_to_learn_from_are_refused(told, better):
    with pytest.raises(InputError, match=better):
        resolve(load("quickstart", [*told, "rl.minibatches=4"]))


def test_a_batch_of_the_stage_can_be_looked_at(run):
    go(tiny("rl.algorithm=dpo"), run)
    batch, scored = stage_batch(run, "rl", 2)
    assert not scored and batch.documents["group"].tolist()[:4] == [0, 0, 1, 1]
    assert batch.streams.keys() == {"loss_weights"}
