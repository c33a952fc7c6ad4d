"""Rollouts drawn while the iteration before is trained on: whose weights, and the same bits."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

import environments_support
from evaluation_support import model, tokenizer
from fourstage.errors import MachineError
from fourstage.planning import resolve
from fourstage.planning.steps import frozen_models
from fourstage.recipe import RL, recipe_from
from fourstage.stages.policy import objective_of
from fourstage.stages.rollouts import RolloutSource
from pipeline_support import tiny
from test_stages_algorithms import learned
from test_stages_rollouts import KINDS, TASKS, WORDS, players, section, source
from training_support import whole_and_cut

STEPS = 10
GROUPS = {**KINDS["groups drawn again"], "behind": 1}
AHEAD = {
    "a critic": {"behind": 1, "correction": "tis"},
    "groups drawn again": GROUPS,
    "a reference that follows": {**KINDS["a reference that follows"], "behind": 1},
}


def recorded(monkeypatch) -> tuple[list[dict], list]:
    """The policy's weights at the start of each iteration, and what each learned from."""
    starts: list[dict] = []
    batches = []
    real = RolloutSource.roll

    def roll(self, iteration):
        weights = self.players.trained.policy.state_dict()
        starts.append({name: weight.clone() for name, weight in weights.items()})
        batches.append(real(self, iteration))
        return batches[-1]

    monkeypatch.setattr(RolloutSource, "roll", roll)
    return starts, batches


def test_an_iteration_is_drawn_with_the_weights_of_the_start_of_the_one_before(
    tmp_path, monkeypatch
):
    starts, batches = recorded(monkeypatch)
    told = {
        "algorithm": "grpo", "group": 4, "behind": 1, "correction": "tis", "rewards": WORDS,
    }  # fmt: skip
    learned(tmp_path, source(**told, steps=12), 12, **told)
    assert len(batches) == 3
    assert not torch.equal(starts[1]["lm_head.weight"], starts[0]["lm_head.weight"])
    plain = section(algorithm="grpo", group=4, rewards=WORDS)
    for iteration, batch in enumerate(batches):
        given = players(False)
        given.trained.policy.load_state_dict(starts[max(0, iteration - 1)])
        alone = RolloutSource(given, tokenizer(), TASKS, plain, seed=0)
        expected, _ = alone._drawn(iteration)
        assert torch.equal(batch.tokens, expected.tokens)
        assert batch.lengths == expected.lengths
        drawn = batch.streams["rollout_logprobs"]
        assert torch.equal(drawn, expected.streams["rollout_logprobs"])
        # Ratios are around the policy of the start of the iteration itself.
        given.trained.policy.load_state_dict(starts[iteration])
        alone._add_logprobs(expected)
        torch.testing.assert_close(batch.streams["old_logprobs"], expected.streams["old_logprobs"])
    gaps = [
        float((b.streams["old_logprobs"] - b.streams["rollout_logprobs"]).abs().max())
        for b in batches
    ]
    assert gaps[0] < 1e-4 < gaps[1], "the second was drawn by weights that are trained no more"


@pytest.mark.parametrize("kind", AHEAD)
def test_a_killed_run_goes_on_with_what_was_pending(tmp_path, kind):
    more = AHEAD[kind]
    objective = objective_of(section(**more))
    whole, resumed = whole_and_cut(tmp_path, lambda: source(**more), objective)
    weights = resumed.players.trained.state_dict()
    assert not torch.equal(weights["policy.lm_head.weight"], model(1).lm_head.weight)
    assert whole.drawer.place == resumed.drawer.place
    for each in (whole, resumed):
        each.close()


def test_what_is_being_drawn_as_a_run_goes_back_leaves_no_trace(monkeypatch):
    made = source(**GROUPS)
    made.batch(0)
    state = made.state()
    real, may_go_on = made.drawer.generate, threading.Event()

    def generate(prompts, seeds):
        may_go_on.wait(60)
        return real(prompts, seeds)

    monkeypatch.setattr(made.drawer, "generate", generate)
    made.batch(made.updates)
    threading.Timer(0.2, may_go_on.set).start()
    made.restore(state)
    assert made.drawer.place == state["place"]
    assert made.ahead is not None
    assert made.ahead.state()["iteration"] == state["ahead"]["iteration"]
    made.close()


def test_what_takes_longer_changes_no_bits(tmp_path, monkeypatch):
    made = source(**GROUPS)
    learned(tmp_path / "plain", made, STEPS, **GROUPS)
    real = RolloutSource._drawn

    def late(self, iteration):
        time.sleep(0.2 * (iteration % 2))
        return real(self, iteration)

    monkeypatch.setattr(RolloutSource, "_drawn", late)
    slow = source(**GROUPS)
    learned(tmp_path / "slow", slow, STEPS, **GROUPS)
    weights = slow.players.trained.state_dict()
    for name, weight in made.players.trained.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    for each in (made, slow):
        each.close()


def test_episodes_are_drawn_ahead_too(tmp_path):
    more = {"behind": 1, "correction": "tis"}
    objective = objective_of(environments_support.section(**more))
    whole, resumed = whole_and_cut(tmp_path, lambda: environments_support.source(**more), objective)
    for each in (whole, resumed):
        each.close()


def test_nothing_is_drawn_beyond_the_last_step():
    made = source(behind=1, steps=4)
    made.batch(0)
    made.batch(3)
    assert made.ahead is not None
    assert made.ahead.state() == {}
    other = source(behind=1, steps=5)
    other.batch(0)
    assert other.ahead is not None
    assert other.ahead.state()["iteration"] == 1


def test_what_drawing_ends_with_is_told_where_it_is_waited_for(monkeypatch):
    made = source(behind=1)
    real = made.drawer.generate

    def generate(prompts, seeds):
        if made.iteration < 0 and made.rollouts is None and made._known:
            raise MachineError("no memory")
        made._known = True
        return real(prompts, seeds)

    made._known = False
    monkeypatch.setattr(made.drawer, "generate", generate)
    made.batch(0)
    with pytest.raises(MachineError, match="no memory"):
        made.batch(4)


def test_a_reward_is_asked_by_one_thread_at_a_time():
    made = source(**GROUPS)
    judge, entered = made.judge, []
    real = judge.rewards.score

    def score(items):
        entered.append(1)
        assert judge.lock.locked()
        return real(items)

    judge.rewards.score = score
    responses = made.drawer.respond([0, 1], 0)
    first = judge.alone()(TASKS[:2], responses)
    second = judge.beside(made.group)(TASKS[:2], responses)
    np.testing.assert_array_equal(first.scores, second.scores)
    assert len(entered) == 2


def test_the_correction_and_the_copy_are_planned():
    recipe, derived = resolve(tiny("rl.behind=1"))
    assert recipe.rl.correction == "tis"
    assert "rl.correction" in {each.key for each in derived}
    plain, _ = resolve(tiny())
    assert plain.rl.correction is None
    assert frozen_models(recipe, "rl") == frozen_models(plain, "rl") + 1
    away = recipe_from(
        {**recipe.to_dict(), "rl": {**recipe.to_dict()["rl"], "rollout_device": "x"}}
    )
    assert frozen_models(away, "rl") == frozen_models(plain, "rl")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"behind": 2}, "less than or equal to 1"),
        ({"behind": 1, "algorithm": "raft"}, "behind=1 is of policy optimisation"),
        ({"behind": 1, "algorithm": "dpo"}, "behind=1 is of policy optimisation"),
        ({"rollout_device": "cuda:1"}, "write behind=1, or leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused(more, words):
    with pytest.raises(ValueError) as error:
        RL(**more)
    assert words in str(error.value)


def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(MachineError, match=r"rollout_device=cuda:17 cannot be used"):
        source(behind=1, rollout_device="cuda:17")
