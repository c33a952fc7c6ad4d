"""Rollouts: what a step trains on, what a killed run needs to go on with the same bits."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation_support import model, tokenizer
from fourstage import precision
from fourstage.data.batch import Batch, Example
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.scoring import scores, trained_logprobs
from fourstage.model.actor_critic import ActorCritic
from fourstage.objectives.logprobs import logprobs
from fourstage.objectives.policy_gradient import PolicyGradient
from fourstage.objectives.ppo import PPO
from fourstage.parallel.group import Group
from fourstage.recipe import RL
from fourstage.stages.episodes import Players, with_text
from fourstage.stages.policy import objective_of
from fourstage.stages.policy_guards import guards, trains_responses
from fourstage.stages.rollouts import RolloutSource
from fourstage.training.guards import GuardFailed
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer
from fourstage.worlds import calibration as world
from training_support import whole_and_cut

TASKS = [world.instruction(0, "rl", index) for index in range(20)]


def section(**more) -> RL:
    told = {"rollout_batch": 16, "group": 1, "epochs": 2, "minibatches": 2, "max_new_tokens": 10}
    return RL(**(told | more))


def players(critic: bool = True) -> Players:
    scorer = model(3, head="scalar")
    scorer.reward_mean, scorer.reward_std = 0.5, 2.0
    reference = model(1).requires_grad_(False)
    return Players(
        ActorCritic(model(1), model(3, head="scalar") if critic else None), reference, scorer
    )


def source(processes: Group | None = None, **more) -> RolloutSource:
    told = section(**more)
    given = players(told.needs_critic)
    if not told.needs_reference:
        given = replace(given, reference=None)
    return RolloutSource(given, tokenizer(), TASKS, told, seed=0, group=processes)


def test_an_iteration_samples_once_and_each_epoch_passes_over_all_of_it():
    made = source()
    made.batch(0)
    made.rollouts.documents["number"] = torch.arange(16)
    seen = [set(made.batch(step).documents["number"].tolist()) for step in range(4)]
    assert made.iteration == 0
    assert seen[0] | seen[1] == seen[2] | seen[3] == set(range(16))
    assert seen[0] != seen[2], "each epoch deals the minibatches anew"
    made.batch(4)
    assert made.iteration == 1


def test_the_trained_cells_are_the_responses():
    made = source()
    batch = made.batch(0)
    trains_responses(None, None, batch)
    batch.streams["loss_weights"][0] = 1.0
    with pytest.raises(GuardFailed):
        trains_responses(None, None, batch)


def test_the_first_minibatch_has_ratio_one():
    made = source(temperature=0.7)
    batch = made.batch(0)
    with torch.no_grad():
        now = logprobs(made.players.trained.policy, batch, 0.7)
    trained = batch.streams["loss_weights"] != 0
    ratio = (now - batch.streams["old_logprobs"])[trained].exp()
    assert float((ratio - 1).abs().max()) < 1e-5
    gap = (batch.streams["rollout_logprobs"] - batch.streams["old_logprobs"])[trained]
    assert float(gap.abs().max()) < 1e-4, "the engine drew from the distribution that is trained"


def test_a_response_without_an_end_gets_the_penalty_and_others_their_normalised_score():
    made = source(missing_end_penalty=-7.0)
    responses = made.drawer.respond(list(range(16)), 0)
    found = made.judge(TASKS[:16], responses).scores
    rows = reward_rows(tokenizer(), responses)
    expected = scores(made.players.reward_model, rows)
    for index, each in enumerate(responses):
        ended = each.tokens[-1] == tokenizer().end_of_turn
        assert float(found[index]) == pytest.approx(expected[index] if ended else -7.0, abs=1e-5)
    assert -7.0 in found


def test_a_score_of_a_rollout_does_not_depend_on_what_else_is_scored():
    made = source()
    responses = made.drawer.respond(list(range(16)), 0)
    together = made.judge(TASKS[:16], responses).scores
    alone = [made.judge(TASKS[:1], [each]).scores[0] for each in responses]
    assert together == pytest.approx(alone, abs=1e-5)


def test_rewards_are_the_kl_penalty_and_the_score_at_the_last_token():
    made = source(kl_coefficient=0.3)
    with torch.no_grad():
        made.players.trained.policy.lm_head.weight.mul_(1.5)
    made.batch(0)
    batch = made.rollouts
    streams, start = batch.streams, 0
    for index, length in enumerate(batch.lengths):
        cells = slice(start, start + length)
        start += length
        trained = (streams["loss_weights"][cells] != 0).nonzero().squeeze(1)
        gap = streams["old_logprobs"][cells] - streams["ref_logprobs"][cells]
        expected = torch.zeros(length)
        expected[trained] = -0.3 * gap[trained]
        expected[trained[-1]] += batch.documents["scores"][index]
        torch.testing.assert_close(streams["rewards"][cells], expected)
    assert float((streams["old_logprobs"] - streams["ref_logprobs"]).abs().max()) > 0


def test_advantages_are_whitened_over_all_trained_cells():
    made = source()
    made.batch(0)
    trained = made.rollouts.streams["loss_weights"] != 0
    advantages = made.rollouts.streams["advantages"][trained]
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_grpo_compares_the_responses_to_one_prompt():
    made = source(algorithm="grpo", group=4)
    made.batch(0)
    batch = made.rollouts
    prompts = batch.documents["prompt_tokens"].view(4, 4)
    assert bool((prompts == prompts[:, :1]).all())
    value = batch.streams["advantages"][batch.last_cells].view(4, 4)
    reward = batch.documents["scores"].view(4, 4)
    expected = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


ONCE = {"algorithm": "grpo", "group": 4, "epochs": 1, "minibatches": 1}


def gradients(made: RolloutSource, batch: Batch, on_policy: bool):
    section = made.section
    objective = PolicyGradient(section.row(), section.temperature, on_policy=on_policy)
    module = made.players.trained
    module.zero_grad()
    terms, metrics = objective.sums(module, batch)
    terms["policy"].backward()
    return [p.grad.clone() for p in module.parameters()], metrics


@pytest.mark.parametrize("more", [{}, {"temperature": 0.7}, {"kl_coefficient": 0.0}])
def test_one_update_of_each_rollout_takes_old_logprobs_from_its_own_pass(more):
    made = source(**ONCE, **more)
    batch = made.batch(0)
    assert objective_of(made.section).on_policy
    found, metrics = gradients(made, batch, on_policy=True)
    total, count = metrics["ratio"]
    assert float(total) == float(count), "every ratio is exactly 1"
    batch.streams["old_logprobs"] = trained_logprobs(
        made.players.trained.policy, batch, made.section.temperature
    )
    expected, _ = gradients(made, batch, on_policy=False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("more", "forwards"),
    [({}, 1), ({"kl_coefficient": 0.0}, 0), ({"minibatches": 2}, 2), ({"kl": "reward"}, 2)],
)
def test_log_probabilities_are_worked_out_where_they_are_asked_for(monkeypatch, more, forwards):
    asked = []

    def counted(*given):
        asked.append(given)
        return trained_logprobs(*given)

    monkeypatch.setattr("fourstage.stages.rollouts.trained_logprobs", counted)
    made = source(**(ONCE | more))
    made.batch(0)
    assert len(asked) == forwards
    context: Any = SimpleNamespace(device=torch.device("cpu"), section=made.section)
    for guard in guards(context):
        guard(made.players.trained, None, made.batch(0))


def test_prompts_are_all_used_before_one_comes_again():
    made = source(rollout_batch=10, minibatches=1)
    assert sorted(made.drawer.chosen(0, 10) + made.drawer.chosen(10, 10)) == list(range(20))
    assert made.drawer.chosen(0, 10) != made.drawer.chosen(20, 10)


def test_the_kl_coefficient_follows_its_target():
    made = source(kl_target=1.0, kl_horizon=100.0, kl_coefficient=0.1)
    made.batch(0)
    # Nothing has moved yet: the KL is 0, far below the target, so the next iteration pays less.
    assert made.metrics()["kl_coefficient"] == 0.1
    assert made.kl.coefficient == pytest.approx(0.1 * (1 - 0.2 * 16 / 100))
    fixed = source(kl_coefficient=0.1)
    fixed.batch(0)
    assert fixed.kl.coefficient == 0.1


def test_gold_is_written_down_and_changes_nothing(monkeypatch):
    from fourstage.stages import drawing

    plain = source()
    plain.batch(0)
    monkeypatch.setattr(drawing.checkers, "gold", lambda task, response: 0.123)
    other = source()
    other.batch(0)
    assert other.metrics()["gold"] == pytest.approx(0.123)
    for name, stream in plain.rollouts.streams.items():
        assert torch.equal(stream, other.rollouts.streams[name])


def test_text_beside_a_minibatch_is_weighed_apart():
    made = source()
    minibatch = made.batch(0)
    text = Batch.language([Example(np.arange(9)), Example(np.arange(30, 50))])
    joined = with_text(minibatch, text)
    assert joined.cells == minibatch.cells + text.cells
    assert float(joined.streams["loss_weights"][minibatch.cells :].sum()) == 0
    assert float(joined.streams["mix_weights"][: minibatch.cells].sum()) == 0
    assert float(joined.streams["mix_weights"].sum()) == float(text.streams["loss_weights"].sum())
    trains_responses(None, None, joined)


# Of each kind of what is held between two steps, one. Rewards differ: few words have no "e".
WORDS = [{"kind": "constraints", "constraints": {"without": ["e"]}}, {"kind": "length"}]
KINDS = {
    "a moving coefficient": {"kl_target": 0.5, "kl_horizon": 50.0},
    "a critic that begins alone": {"value_warmup": 1, "entropy_coefficient": 0.01},
    "groups": {"algorithm": "grpo", "group": 4},
    "steps that are paid where they end": {"step_rewards": "each"},
    "groups drawn again": {
        "algorithm": "dapo", "group": 2, "dynamic_sampling": True, "rewards": WORDS,
        "max_new_tokens": 3, "correction": "tis", "overlong": "penalty", "overlong_buffer": 2,
    },
    "one update of each rollout": {
        "algorithm": "grpo", "group": 4, "epochs": 1, "minibatches": 1, "rewards": WORDS,
    },
    "a reference that follows": {
        "algorithm": "rloo", "group": 4, "reference_reset": 1, "rewards": WORDS,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_cut_in_the_middle_of_an_iteration_goes_on_with_the_same_bits(tmp_path, kind):
    more = KINDS[kind]
    objective = objective_of(section(**more))
    whole, resumed = whole_and_cut(tmp_path, lambda: source(**more), objective, cuts=(5, 6))
    weights = resumed.players.trained.state_dict()
    assert not torch.equal(weights["policy.lm_head.weight"], model(1).lm_head.weight)
    assert whole.kl.coefficient == resumed.kl.coefficient
    assert whole.drawer.place == resumed.drawer.place
    if whole.players.reference is not None:
        held = resumed.players.reference.state_dict()
        for name, weight in whole.players.reference.state_dict().items():
            assert torch.equal(weight, held[name]), name
    rows = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "cut")]
    assert len(rows[0]) == len(rows[1]) == 10


def test_updates_move_the_policy_towards_what_the_reward_model_likes(tmp_path):
    made = source(rollout_batch=32, epochs=1, minibatches=2, kl_coefficient=0.0)
    settings = TrainSettings(steps=40, learning_rate=1e-2, log_every=1, schedule="constant")
    Trainer(made.players.trained, PPO(), made, settings, tmp_path, say=lambda line: None).train()
    from fourstage.training.metrics import read_rows

    rewards = [row["reward"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert np.mean(rewards[-8:]) > np.mean(rewards[:8])
    assert not made.players.trained.policy.lm_head.weight.equal(model(1).lm_head.weight)


def test_responses_drawn_in_bf16_pass_the_guards_of_the_first_minibatch():
    precision.use("bf16")
    try:
        made = source()
        batch = made.batch(0)
        context: Any = SimpleNamespace(device=torch.device("cpu"), section=made.section)
        for guard in guards(context):
            guard(made.players.trained, None, batch)
    finally:
        precision.use(None)
