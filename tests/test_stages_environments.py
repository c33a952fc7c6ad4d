"""Rollouts of several turns: which cells are trained, what stands on them, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from environments_support import GAME, SUMS, TURNS, player, section, source
from evaluation_support import tokenizer
from fourstage.environments.guess import Guess
from fourstage.objectives.algorithms import ALGORITHMS
from fourstage.objectives.estimating import PLACED
from fourstage.objectives.logprobs import logprobs
from fourstage.stages.playing import Dialogue, transcript
from fourstage.stages.policy import objective_of
from fourstage.stages.policy_guards import trains_responses
from fourstage.training.guards import GuardFailed
from fourstage.training.metrics import read_rows
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer
from test_environments import OWN
from training_support import whole_and_cut


def played(made) -> list[Dialogue]:
    """The episodes of iteration 0."""
    made.drawer.place = 0
    return made.drawer.draw(0, made.judge).responses


def test_an_episode_is_the_conversation_as_the_template_writes_it():
    made = source(rollout_batch=32)
    dialogues = played(made)
    assert {len(each.spans) for each in dialogues} == {1, 2}
    for each in dialogues:
        if not each.finished:
            continue
        game = Guess(GAME["options"]["highest"])
        text = tokenizer().decode(each.prompt)
        answers = [tokenizer().decode(each.tokens[a:b]) for a, b in each.spans]
        messages = [{"role": "user", "content": text}]
        for number, answer in enumerate(answers):
            messages.append({"role": "assistant", "content": answer})
            if number < len(each.said):
                messages.append({"role": "user", "content": each.said[number]})
        example = tokenizer().chat_example(messages)
        whole = [*each.prompt, *each.tokens]
        assert whole == example.tokens.tolist()
        assert [False] * len(each.prompt) + each.drawn.tolist() == example.trained().tolist()
        assert game.highest == 3
        assert transcript(each, tokenizer()).count("> ") == len(each.said)


def test_what_the_environment_said_follows_from_what_was_answered():
    for each in played(source(rollout_batch=32)):
        numbers = [tokenizer().decode(each.tokens[a:b]) for a, b in each.spans]
        assert each.rewards[:-1] == (0.0,) * (len(each.spans) - 1)
        assert each.cut == (each.rewards[-1] == 0.0 and len(each.spans) == TURNS)
        for said, number in zip(each.said, numbers, strict=False):
            assert said in ("higher", "lower", "say a number from 1 to 3")
            assert said != "higher" or number.strip() != "3"


def test_the_trained_cells_are_what_the_policy_drew():
    made = source()
    batch = made.batch(0)
    trains_responses(None, None, batch)
    whole = made.rollouts
    dialogues = played(made)
    start = 0
    for each, length in zip(dialogues, whole.lengths, strict=True):
        cells = slice(start, start + length)
        start += length
        tokens = [*each.prompt, *each.tokens]
        assert whole.tokens[cells].tolist() == tokens[:-1]
        own = [False] * len(each.prompt) + each.drawn.tolist()
        trained = (whole.streams["loss_weights"][cells] != 0).tolist()
        assert trained == own[1:]
        assert sum(trained) == sum(each.turn_lengths) == len(each.logprobs)
        drawn = whole.streams["rollout_logprobs"][cells]
        np.testing.assert_allclose(drawn[trained].numpy(), each.logprobs)
        rewards = whole.streams[PLACED][cells]
        for (_, end), reward in zip(each.spans, each.rewards, strict=True):
            assert float(rewards[len(each.prompt) + end - 2]) == reward
        assert float(rewards.sum()) == pytest.approx(sum(each.rewards))
    batch.streams["loss_weights"][batch.streams["observed"].nonzero()[0]] = 1.0
    with pytest.raises(GuardFailed):
        trains_responses(None, None, batch)


def test_the_engine_drew_each_turn_from_the_distribution_that_is_trained():
    made = source(temperature=0.8)
    made.batch(0)
    batch = made.rollouts
    trained = batch.streams["loss_weights"] != 0
    gap = (batch.streams["rollout_logprobs"] - batch.streams["old_logprobs"])[trained]
    assert float(gap.abs().max()) < 1e-4
    with torch.no_grad():
        now = logprobs(made.players.trained.policy, batch, 0.8)
    assert float((now - batch.streams["old_logprobs"])[trained].abs().max()) < 1e-5


def test_episodes_of_a_group_begin_alike_and_groups_do_not():
    made = source(rollout_batch=32, environment=SUMS, max_new_tokens=1)
    prompts = [each.prompt for each in played(made)]
    for first in range(0, 32, 4):
        assert len(set(prompts[first : first + 4])) == 1
    assert len(set(prompts)) > 4


def test_an_answer_without_an_end_is_not_shown_and_gets_the_penalty():
    made = source(max_new_tokens=1, missing_end_penalty=-3.0)
    for each in played(made):
        assert len(each.spans) == 1
        assert each.tokens[-1] == tokenizer().end_of_turn or each.rewards == (-3.0,)
        assert each.finished == (each.tokens[-1] in tokenizer().stop_ids)


@pytest.mark.parametrize("credit", ["turn", "episode"])
def test_gae_over_turns_equals_a_loop_over_what_was_drawn(credit):
    shaped = {**SUMS, "credit": credit}
    made = source(
        algorithm="ppo", environment=shaped, gamma=0.9, lam=0.8, kl_coefficient=0.2,
        advantage_scale="none", overlong="penalty", overlong_buffer=3, group=1,
        max_new_tokens=16,
    )  # fmt: skip
    with torch.no_grad():
        made.players.trained.policy.lm_head.weight.mul_(1.1)
    made.batch(0)
    whole, start = made.rollouts, 0
    dialogues, streams = played(made), whole.streams
    assert max(len(each.spans) for each in dialogues) > 1
    for index, (each, length) in enumerate(zip(dialogues, whole.lengths, strict=True)):
        cells = [start + i for i in range(length) if streams["loss_weights"][start + i]]
        start += length
        ends = np.cumsum(each.turn_lengths) - 1
        rewards = [
            -0.2 * float(streams["old_logprobs"][cell] - streams["ref_logprobs"][cell])
            for cell in cells
        ]
        total = float(whole.documents["scores"][index])
        for end, reward in zip(ends, each.rewards, strict=True):
            rewards[end if credit == "turn" else -1] += reward
        rewards[-1] += total - sum(each.rewards)
        values = [float(streams["old_values"][cell]) for cell in cells] + [0.0]
        running, expected = 0.0, []
        for t in reversed(range(len(cells))):
            running = rewards[t] + 0.9 * values[t + 1] - values[t] + 0.9 * 0.8 * running
            expected.append(running)
        found = streams["advantages"][cells]
        torch.testing.assert_close(found, torch.tensor(expected[::-1]), atol=1e-4, rtol=1e-4)


def test_groups_are_compared_by_the_sum_over_their_turns():
    made = source()
    made.batch(0)
    batch = made.rollouts
    totals = torch.tensor([sum(each.rewards) for each in played(made)])
    torch.testing.assert_close(batch.documents["scores"], totals)
    of_groups = totals.view(-1, 4)
    expected = (of_groups - of_groups.mean(1, keepdim=True)) / (
        of_groups.std(1, keepdim=True) + 1e-4
    )
    owners = batch.document_ids
    trained = batch.streams["loss_weights"] != 0
    torch.testing.assert_close(
        batch.streams["advantages"][trained], expected.flatten()[owners][trained]
    )
    assert float(batch.streams["advantages"][~trained].abs().sum()) == 0


def learned(folder, made, steps: int, rate: float = 3e-3) -> list[dict[str, Any]]:
    settings = TrainSettings(
        steps=steps, learning_rate=rate, log_every=1, weight_decay=0.0, schedule="constant"
    )
    objective = objective_of(made.section)
    Trainer(made.players.trained, objective, made, settings, folder, say=lambda line: None).train()
    return read_rows(folder / "metrics.jsonl")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_on_turns(tmp_path, algorithm):
    group = 4 if ALGORITHMS[algorithm].needs_groups else 1
    rows = learned(tmp_path, source(algorithm=algorithm, group=group), 4)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert any(row["gradient_norm"] > 0 for row in rows)
    assert rows[0]["ratio_deviation"] < 1e-5
    assert {"turns", "cut_episodes", "reward/environment", "reward_faults/environment"} <= set(
        rows[0]
    )


KINDS = {
    "grpo": {},
    "ppo": {"algorithm": "ppo", "group": 1, "epochs": 2},
    "groups drawn again": {
        "algorithm": "dapo", "dynamic_sampling": True, "overlong": "leave_out",
    },
    "tools": {"environment": SUMS, "max_new_tokens": 16},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_cut_between_turns_of_training_goes_on_with_the_same_bits(tmp_path, kind):
    more = KINDS[kind]
    objective = objective_of(section(**more))
    _, resumed = whole_and_cut(tmp_path, lambda: source(**more), objective)
    weights = resumed.players.trained.state_dict()
    assert not torch.equal(weights["policy.lm_head.weight"], player().lm_head.weight)


def test_faults_of_ones_own_environment_are_counted_and_penalised(tmp_path):
    (tmp_path / "game.py").write_text(OWN.replace('"throw"', '"3"').replace('"stop"', '"1"'))
    told = {"kind": "own", "path": f"{tmp_path}/game.py:Game", "turns": 3, "fault_score": -2.0}
    made = source(environment=told)
    lines: list[str] = []
    made.drawer.say = lines.append
    try:
        made.batch(0)
    finally:
        made.judge.__exit__(None, None, None)
    dialogues = played(made)
    made.judge.__exit__(None, None, None)
    broken = [each for each in dialogues if each.fault]
    assert 0 < len(broken) < len(dialogues)
    assert all(each.rewards[-1] == -2.0 for each in broken)
    assert made.metrics()["reward_faults/environment"] == len(broken)
    assert any("RuntimeError: broken" in line for line in lines)


def test_a_beginning_that_fails_costs_its_episodes(tmp_path):
    (tmp_path / "game.py").write_text(OWN.replace('task["prompt"] == "no text"', "seed % 2"))
    told = {"kind": "own", "path": f"{tmp_path}/game.py:Game", "fault_score": -2.0}
    made = source(environment=told)
    try:
        dialogues = played(made)
    finally:
        made.judge.__exit__(None, None, None)
    broken = [each for each in dialogues if each.fault]
    assert 0 < len(broken) < len(dialogues)
    assert all((len(each.spans), each.rewards) == (1, (-2.0,)) for each in broken)


def test_what_leaves_no_room_ends_the_episode(tmp_path):
    long = OWN.replace('f"turn {self.count}"', '"a b " * (20 if task_is_short else 500)')
    for short, fault in ((True, ""), (False, "more than the context of 128")):
        (tmp_path / "game.py").write_text(f"task_is_short = {short}\n{long}")
        told = {"kind": "own", "path": f"{tmp_path}/game.py:Game", "turns": 9}
        made = source(environment=told)
        try:
            dialogues = played(made)
        finally:
            made.judge.__exit__(None, None, None)
        going = [each for each in dialogues if each.finished]
        assert going
        for each in going:
            assert len(each.prompt) + len(each.tokens) <= 128
            assert each.cut == short
            assert fault in each.fault
            assert bool(each.fault) == bool(fault)


def test_a_tiny_model_learns_to_use_what_it_is_told(tmp_path):
    made = source(rollout_batch=64, group=8, minibatches=1, kl_coefficient=0.0, max_new_tokens=4)
    rewards = [row["reward"] for row in learned(tmp_path, made, 60, 1e-2)]
    # Guesses at random find one of three numbers in two turns five times out of nine.
    assert np.mean(rewards[:5]) < 0.7
    assert np.mean(rewards[-5:]) > 0.9
    kept = transcript(played(made)[0], tokenizer())
    assert kept in ("2", "2\n> higher\n3", "2\n> lower\n1"), "it has come to halve"
