"""Every algorithm through rollouts and updates, its options, and what a recipe may not ask."""

from __future__ import annotations

import math

import pytest
import torch

from evaluation_support import model, tokenizer
from fourstage.errors import InputError
from fourstage.objectives.algorithms import ALGORITHMS
from fourstage.planning import resolve
from fourstage.planning.facts import row_tokens
from fourstage.planning.flops import training_work
from fourstage.planning.steps import frozen_models
from fourstage.recipe import RL, recipe_from
from fourstage.stages.policy import correction_of, objective_of
from fourstage.stages.policy_guards import trains_responses
from fourstage.training.metrics import read_rows
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer
from test_stages_rollouts import WORDS, section, source

STEPS = 8


def trained(folder, steps: int = STEPS, **more):
    """A source after some updates, and the rows of its metrics."""
    made = source(**more)
    return made, learned(folder, made, steps, **more)


def learned(folder, made, steps: int = STEPS, **more):
    settings = TrainSettings(
        steps=steps, learning_rate=3e-3, log_every=1, weight_decay=0.0, schedule="constant"
    )
    objective = objective_of(section(**more))
    Trainer(made.players.trained, objective, made, settings, folder, say=lambda line: None).train()
    return read_rows(folder / "metrics.jsonl")


def told(algorithm: str) -> dict:
    return {"algorithm": algorithm, "group": 4 if ALGORITHMS[algorithm].needs_groups else 1}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_on_what_it_drew(tmp_path, algorithm):
    _, rows = trained(tmp_path, **told(algorithm), rewards=WORDS)
    # Ratios of whole responses soon leave their clip range: then nothing is learned till the next.
    assert all(math.isfinite(row["loss"]) for row in rows) and rows[0]["gradient_norm"] > 0
    assert rows[0]["ratio_deviation"] < 1e-5, "the first update is on-policy"
    assert ("value_loss" in rows[0]) == (algorithm == "ppo")
    assert ("kl" in rows[0]) == (ALGORITHMS[algorithm].kl_coefficient > 0)
    assert ("self_overlap" in rows[0]) == ALGORITHMS[algorithm].needs_groups


@pytest.mark.parametrize(
    "algorithm", [n for n, row in ALGORITHMS.items() if not row.kl_coefficient]
)
def test_a_tiny_coefficient_has_the_kl_watched(tmp_path, algorithm):
    _, rows = trained(tmp_path, **told(algorithm), rewards=WORDS, kl_coefficient=1e-6)
    assert all("kl" in row for row in rows) and rows[-1]["kl"] != 0.0


def _ends_at_once(made) -> None:
    """The policy draws nothing but the end of a turn."""
    _always(made, tokenizer().end_of_turn)


def _never_ends(made) -> None:
    _always(made, tokenizer().encode("a")[0])


def _always(made, token: int) -> None:
    policy = made.players.trained.policy
    real = policy.logits

    def logits(hidden):
        found = real(hidden)
        found[..., token] += 1000.0
        return found

    policy.logits = logits


@pytest.mark.parametrize("drawing", [_ends_at_once, _never_ends])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_answers_that_are_all_empty_or_all_endless_give_finite_numbers(algorithm, drawing):
    made = source(**told(algorithm))
    drawing(made)
    batch = made.batch(0)
    ended = drawing is _ends_at_once
    assert made.numbers["finished"] == ended
    assert made.numbers["length"] == (1 if ended else 10)
    assert all(stream.isfinite().all() for stream in batch.streams.values())


def test_a_critic_that_begins_alone_leaves_the_policy_as_it_is(tmp_path):
    more = {"value_warmup": 1, "entropy_coefficient": 0.1, "rewards": WORDS}
    made, _ = trained(tmp_path / "first", 4, **more)
    before = model(1).state_dict()
    for name, weight in made.players.trained.policy.state_dict().items():
        assert torch.equal(weight, before[name]), name
    value = made.players.trained.critic.state_dict()["score.weight"]
    assert not torch.equal(value, model(3, head="scalar").state_dict()["score.weight"])
    made, _ = trained(tmp_path / "then", 8, **more)
    assert not torch.equal(made.players.trained.policy.lm_head.weight, before["lm_head.weight"])


def test_a_reference_that_is_reset_is_the_policy_of_that_moment(tmp_path):
    more = {"algorithm": "rloo", "group": 4, "rewards": WORDS}
    _, far = trained(tmp_path / "kept", 12, **more)
    made, near = trained(tmp_path / "reset", 12, reference_reset=2, **more)
    kls = [[row["kl"] for row in rows if row["step"] % 4 == 1] for rows in (far, near)]
    assert kls[0][:2] == kls[1][:2] and kls[0][2] > 1e-4
    assert abs(kls[1][2]) < 1e-5 and made.resets == 1


def test_dead_groups_are_drawn_again_from_further_prompts():
    more = {"algorithm": "dapo", "group": 2, "rewards": WORDS, "max_new_tokens": 3}
    kept = source(**more)
    kept.batch(0)
    assert kept.drawer.place == 8 and kept.numbers["dead_groups"] > 0
    drawn = source(dynamic_sampling=True, **more)
    drawn.batch(0)
    scores = drawn.rollouts.documents["scores"].view(-1, 2)
    assert len(scores) == 8 and bool((scores[:, 0] != scores[:, 1]).all())
    assert drawn.drawer.place == 8 + drawn.numbers["redrawn_groups"] > 8
    once = source(dynamic_sampling=True, dynamic_rounds=1, **more)
    once.batch(0)
    # Nothing to draw them from: the dead ones fill the batch, and teach nothing.
    assert len(once.rollouts.lengths) == 16 and once.drawer.place == 8


def test_overlong_answers_lose_reward_or_leave_the_loss():
    more = {"algorithm": "dapo", "group": 4, "rewards": WORDS[:1]}
    plain, penalised = source(**more), source(overlong="penalty", overlong_buffer=5, **more)
    plain.batch(0)
    penalised.batch(0)
    gap = penalised.rollouts.documents["scores"] - plain.rollouts.documents["scores"]
    tokens = torch.zeros(16).index_add(
        0, plain.rollouts.document_ids, plain.rollouts.streams["loss_weights"]
    )
    torch.testing.assert_close(gap, -((tokens - 5) / 5).clamp(0, 1))
    left = source(overlong="leave_out", **more)
    batch = left.batch(0)
    trains_responses(None, None, batch)
    weights = left.rollouts.streams["loss_weights"]
    cut = torch.zeros(16).index_add(0, left.rollouts.document_ids, weights) == 0
    assert torch.equal(cut, (tokens == 10) & (left.rollouts.documents["left_out"] == 1))
    assert left.numbers["left_out"] == pytest.approx(float(cut.float().mean()))
    assert cut.any()


def test_a_correction_has_its_published_bounds_unless_others_are_given():
    tis, icepop = (correction_of(section(correction=name)) for name in ("tis", "icepop"))
    assert (tis.method, tis.low, tis.high) == ("truncate", 0.0, 2.0)
    assert (icepop.method, icepop.low, icepop.high) == ("mask", 0.5, 5.0)
    own = correction_of(
        section(correction="icepop", correction_high=3, correction_level="sequence")
    )
    assert (own.low, own.high, own.level) == (0.5, 3.0, "sequence")
    assert correction_of(section()) is None


def test_what_a_recipe_changes_reaches_the_row():
    row = RL(
        algorithm="grpo", advantage_scale="none", clip_low=0.1, clip_high=0.3, dual_clip=3,
        aggregation="constant", kl_estimator="k2", kl_summed=True, kl_coefficient=0.2,
        max_new_tokens=77,
    ).row()  # fmt: skip
    assert (row.scale, row.clip_low, row.clip_high, row.dual_clip) == ("none", 0.1, 0.3, 3)
    assert (row.constant_length, row.kl_estimator, row.kl_summed) == (77, "k2", True)
    assert row.kl_coefficient == 0.2 and row.kl == "loss"
    both = RL(clip_range=0.3).row()
    assert (both.clip_low, both.clip_high) == (0.3, 0.3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_coefficient_and_the_group_are_the_rows_and_told_with_their_source(algorithm):
    recipe, derived = resolve(recipe_from({"rl": {"algorithm": algorithm}}))
    row = ALGORITHMS[algorithm]
    assert recipe.rl.kl_coefficient == row.kl_coefficient
    assert recipe.rl.group == (8 if row.needs_groups else 1)
    rules = {each.key: each.rule for each in derived}
    assert row.source in rules["rl.kl_coefficient"] and algorithm in rules["rl.group"]
    assert (recipe.rl.critic_learning_rate is not None) == row.needs_critic


def test_models_that_an_algorithm_does_without_are_not_planned():
    def plan(**rl):
        recipe, _ = resolve(recipe_from({"data": {"pretrain": "world"}, "rl": rl}))
        work = training_work(recipe, "rl", row_tokens(recipe))
        return frozen_models(recipe, "rl"), work.scored_scalar, work.scored, recipe.needed()

    ppo, dapo = plan(), plan(algorithm="dapo", rewards="math")
    assert ppo[0] == 2 and dapo[0] == 0
    assert ppo[1] > 0 == dapo[1]
    assert dapo[2] < ppo[2]
    assert ppo[3] == ["pretrain", "sft", "reward", "rl"] and dapo[3] == ["pretrain", "sft", "rl"]
    assert plan(algorithm="dapo", rewards="math,model")[3] == ppo[3]
    assert plan(algorithm="grpo", rewards="math")[0] == 1


@pytest.mark.parametrize(
    ("rl", "words"),
    [
        ({"algorithm": "dap0"}, "did you mean 'dapo'"),
        ({"algorithm": "grpo", "group": 1}, "group=1 leaves grpo nothing to compare with"),
        ({"algorithm": "grpo", "kl_target": 1.0}, "grpo has its KL in the loss"),
        ({"algorithm": "dapo", "kl_target": 1.0}, "dapo has its KL at 0"),
        ({"algorithm": "rloo", "advantage_scale": "group"}, "write advantage_scale=none"),
        ({"ratio": "sequence_mean"}, "write ratio=token, or advantage=group"),
        ({"clip_range": 0.2, "clip_high": 0.3}, "say the same twice"),
        ({"algorithm": "reinforce", "clip_range": 0.2}, "clip_range clips nothing"),
        ({"dynamic_sampling": True}, "ppo compares none"),
        ({"algorithm": "rloo", "value_warmup": 2}, "rloo has none"),
        ({"value_warmup": 2, "weight_decay": 0.1}, "write weight_decay=0"),
        ({"reference_reset": 5, "kl_coefficient": 0}, "leave one of the two out"),
        ({"reference_reset": 5, "adapter": {"rank": 2}}, "the frozen model beneath it"),
        ({"correction_high": 3}, "write correction=tis"),
        ({"correction": "tis", "correction_low": 1}, "shuts out a weight of 1"),
        ({"overlong_buffer": 3}, "write that, or leave it out"),
        ({"overlong": "penalty", "overlong_buffer": 9, "max_new_tokens": 5}, "at most that"),
        ({"rewards": "math", "reward_model": "x"}, "no part of kind model"),
        ({"rewards": "math", "missing_end_penalty": -2}, "no part of kind model"),
        ({"rewards": [{"kind": "math", "weight": 0}]}, "nothing would be learned"),
        ({"rewards": "[{kind: math"}, r"write a list such as"),
        ({"dual_clip": 1.1}, "inside of the clip range"),
        ({"aggregation": "mean"}, "must be one of token_mean"),
        ({"kl": "loss"}, "has a gradient of 0 on average"),
        ({"algorithm": "grpo", "kl_estimator": "k1"}, "has a gradient of 0 on average"),
        ({"algorithm": "grpo", "lam": 0.9}, "lam is of a critic"),
        ({"algorithm": "rloo", "value_clip": 0.1}, "value_clip is of a critic"),
        ({"algorithm": "reinforce", "critic_learning_rate": 1e-4}, "is of a critic"),
        ({"algorithm": "grpo", "gamma": 0.9}, "rewards whole responses"),
        ({"algorithm": "dapo", "kl_estimator": "k2"}, "is of a KL with the reference"),
        ({"kl_coefficient": 0, "kl": "reward"}, "is of a KL with the reference"),
        ({"kl_horizon": 500}, "kl_horizon is of kl_target"),
        ({"algorithm": "dapo", "dynamic_rounds": 3}, "dynamic_rounds is of dynamic_sampling"),
        ({"algorithm": "dpo", "group": 4}, "dpo draws none"),
        ({"algorithm": "dpo", "missing_end_penalty": -3}, "dpo draws none"),
        ({"algorithm": "simpo", "gamma": 0.5}, "write preference.gamma"),
        ({"algorithm": "raft", "value_coefficient": 0.5}, "is of policy optimisation"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_line(rl, words):
    with pytest.raises(InputError) as refused:
        recipe_from({"rl": rl})
    (line,) = refused.value.faults
    assert words in line and line.startswith("rl")


def test_more_minibatches_than_responses_are_refused_before_anything_is_trained():
    with pytest.raises(InputError, match=r"minibatches=32 cuts rl\.rollout_batch=16 into"):
        resolve(recipe_from({"rl": {"minibatches": 32, "rollout_batch": 16}}))


@pytest.mark.parametrize(
    "told", [{"kl": "loss", "kl_weighted": True}, {"algorithm": "reinforce++", "gamma": 0.9},
             {"kl_target": 6, "kl_horizon": 500}, {"algorithm": "dpo", "rollout_batch": 64}]
)  # fmt: skip
def test_what_is_read_somewhere_is_taken(told):
    assert recipe_from({"rl": told}).rl.algorithm == told.get("algorithm", "ppo")


def test_a_reward_model_that_gives_no_number_costs_its_answers_and_is_counted():
    made = source(missing_end_penalty=0.5, max_new_tokens=60)
    said: list[str] = []
    made.drawer.say = said.append
    with torch.no_grad():
        made.players.reward_model.score.weight.fill_(math.nan)
    batch = made.batch(0)
    ended = round(16 * made.numbers["finished"])
    assert made.numbers["reward_faults/model"] == ended > 0
    assert made.numbers["reward"] == pytest.approx((0.5 * (16 - ended) - ended) / 16)
    assert said == [f"rl: {ended} of 16 responses have no number: model: the number is nan"]
    assert all(stream.isfinite().all() for stream in batch.streams.values())
