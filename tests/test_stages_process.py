"""Process rewards in reinforcement learning: each number against a plain loop, and a whole run."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation_support import model, tokenizer
from fourstage.data.judgements import step_ends
from fourstage.errors import InputError
from fourstage.evaluation.steps import rewards_of_steps, step_places, whole_score
from fourstage.files import read_json
from fourstage.recipe import RL
from fourstage.stages.judging import Judge
from pipeline_support import go, recipe_file, rows, started, tiny, weights, whole_run
from test_stages_rollouts import section, source

STEPS = np.array([2.0, -1.0, 0.5])
LINE_END = tokenizer().encode("\n")[0]
WHOLES = ("least", "mean", "product", "last")


def right(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def talks_in_lines(made) -> None:
    """The policy ends lines and turns more often than it would by chance."""
    policy = made.players.trained.policy
    real = policy.logits

    def logits(hidden):
        found = real(hidden)
        found[..., LINE_END] += 5.0
        found[..., tokenizer().end_of_turn] += 4.0
        return found

    policy.logits = logits


def drawn_with(**more):
    """A source that has drawn its first iteration of answers in lines, and what it drew."""
    made = source(**more)
    talks_in_lines(made)
    kept = []
    real = made.drawer.draw

    def draw(iteration, judge):
        kept.append(real(iteration, judge))
        return kept[-1]

    made.drawer.draw = draw
    return made, made.roll(0), kept[0]


def plain_scores(scorer, response) -> list[float]:
    """The scores of a response's steps, each by a pass of its own over what stands before."""
    made, said = tokenizer(), list(response.tokens)
    ended = said[-1] in made.stop_ids
    text = said[:-1] if ended else said
    row = [*response.prompt, *text]
    ends = [len(response.prompt) + place for place in step_ends(made, text)]
    turn = made.reward_row([{"role": "assistant", "content": ""}])
    whole = [*row, *turn[turn.index(made.end_of_turn) :]]
    found = []
    for cells in [*(row[: end + 1] for end in ends), whole]:
        tokens = torch.tensor(cells)
        layout = _layout(len(cells))
        with torch.no_grad():
            found.append(float(scorer.scores(scorer(tokens, layout))[-1]))
    return found


def _layout(size: int):
    from fourstage.data.batch import Batch, Example

    return Batch.rows([Example(np.zeros(size, np.int64))]).layout


def test_rewards_of_steps_are_what_their_words_say():
    p = [right(score) for score in STEPS]
    np.testing.assert_allclose(rewards_of_steps(STEPS, "each"), [x / 3 for x in p])
    np.testing.assert_allclose(
        rewards_of_steps(STEPS, "progress"), [p[0] - 0.5, p[1] - p[0], p[2] - p[1]]
    )
    assert whole_score(STEPS, "mean") == pytest.approx(sum(p) / 3)
    assert rewards_of_steps(STEPS, "each").sum() == pytest.approx(whole_score(STEPS, "mean"))
    assert rewards_of_steps(STEPS, "progress").sum() == pytest.approx(p[2] - 0.5)
    for how in WHOLES:
        assert 0 <= whole_score(np.array([-1e4, 1e4]), how) <= 1


@pytest.mark.parametrize("how", ["each", "progress", *WHOLES])
def test_a_response_gets_what_a_plain_loop_over_its_steps_gives(how):
    made, _, drawn = drawn_with(step_rewards=how)
    scorer, several = made.players.reward_model, 0
    for response, score in zip(drawn.responses, drawn.scores.tolist(), strict=True):
        if response.tokens[-1] != tokenizer().end_of_turn:
            assert score == -1.0
            continue
        steps = np.array(plain_scores(scorer, response))
        several += len(steps) > 1
        placed = how in ("each", "progress")
        expected = rewards_of_steps(steps, how).sum() if placed else whole_score(steps, how)
        assert score == pytest.approx(expected, abs=1e-5)
    assert several > 1, "some answers have several steps"


@pytest.mark.parametrize("how", ["each", "progress"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_each_step_is_paid_where_it_ends(how, weight):
    parts = [{"kind": "model", "weight": weight}, {"kind": "missing_end", "weight": 0.25}]
    made, batch, drawn = drawn_with(step_rewards=how, rewards=parts, kl_coefficient=0.0)
    start, paid_on_the_way = 0, 0
    for response, length in zip(drawn.responses, batch.lengths, strict=True):
        expected = [0.0] * length
        first = len(response.prompt) - 1
        if response.tokens[-1] == tokenizer().end_of_turn:
            steps = np.array(plain_scores(made.players.reward_model, response))
            places = step_places(tokenizer(), response)
            for place, value in zip(places, rewards_of_steps(steps, how), strict=True):
                expected[first + place] += weight * value
            paid_on_the_way += len(places) - 1
        else:
            expected[-1] = -weight - 0.25
        found = batch.streams["rewards"][start : start + length].tolist()
        assert found == pytest.approx(expected, abs=1e-5)
        start += length
    assert paid_on_the_way > 1


def test_without_a_critic_what_is_paid_on_the_way_is_still_to_come_before_it():
    made, batch, drawn = drawn_with(
        step_rewards="each", algorithm="reinforce++", kl_coefficient=0.0, missing_end_penalty=0.0
    )
    to_go, weights_of = [], batch.streams["loss_weights"]
    for response, length, placed in zip(
        drawn.responses, batch.lengths, drawn.judged.placed, strict=True
    ):
        total = dict(placed)
        score = drawn.scores[drawn.responses.index(response)].item()
        left = score - sum(total.values())
        total[len(response.tokens) - 1] = total.get(len(response.tokens) - 1, 0.0) + left
        first = len(response.prompt) - 1
        to_go += [
            sum(value for place, value in total.items() if first + place >= cell)
            if cell >= first
            else 0.0
            for cell in range(length)
        ]
    values = torch.tensor(to_go)[weights_of != 0]
    expected = (values - values.mean()) / values.std(correction=0)
    found = batch.streams["advantages"][weights_of != 0]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    assert made.numbers["reward"] == pytest.approx(float(drawn.scores.mean()))


@pytest.mark.parametrize("told", [
    {"algorithm": "grpo"}, {"algorithm": "rloo"}, {"algorithm": "raft"},
    {"algorithm": "dpo", "online": True},
])  # fmt: skip
def test_algorithms_that_compare_whole_responses_take_whole_scores_alone(told):
    with pytest.raises(ValueError, match="write step_rewards=least, or algorithm=ppo"):
        RL(**told, step_rewards="each")
    assert RL(**told, step_rewards="least").step_rewards == "least"


@pytest.mark.parametrize("overrides, words", [
    (["rl.step_rewards=least"], "write reward.objective=process"),
    (["rl.step_rewards=least", "reward.objective=process", "reward.ensemble=2"],
     "reads the steps of one model: write reward.ensemble=1"),
    (["rl.step_rewards=each", "rl.rewards=math"], "rewards have no part of kind model"),
    (["rl.step_rewards=each", "rl.algorithm=dpo"], "draws none"),
    (["rl.watch_model=runs/other", "rl.algorithm=dpo"], "draws none"),
    (["rl.watch_model=runs/other", "rl.rewards=math"], "rewards have no part of kind model"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_in_a_line(overrides, words):
    with pytest.raises(InputError, match=words) as refused:
        tiny(*overrides)
    assert "\n" not in str(refused.value)


def test_a_judge_of_steps_reads_what_is_longer_than_the_context_from_its_end():
    short = model(3, head="scalar", context=32)
    judge = Judge(section(step_rewards="last"), tokenizer(), short)
    made = source()
    responses = made.drawer.respond(made.drawer.chosen(0, 4), 0)
    found = judge.learned(responses).scores
    assert len(found) == 4 and np.isfinite(found).all()
    assert max(len(each.prompt) + len(each.tokens) for each in responses) > 32


def steps_file(folder: Path) -> str:
    rows = []
    for index in range(80):
        good = index % 2 == 0
        steps = [f"We add {index} and 1.", f"So it is {index + 1 if good else index}."]
        asked = f"What is {index} and 1?"
        rows.append({"prompt": asked, "steps": steps, "labels": [True, good]})
    file = folder / "steps.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.preferences={file}"


def test_a_run_rewards_steps_and_ends_with_the_same_bits_when_killed(tmp_path, tmp_path_factory):
    run = shutil.copytree(whole_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    told = (steps_file(tmp_path), "reward.objective=process", "rl.steps=6")
    go(tiny(*told), run, only="reward")
    assert read_json(run / "reward" / "model" / "config.json")["reward_objective"] == "process"
    again = shutil.copytree(run, tmp_path / "again")
    recipe = tiny(*told, "rl.step_rewards=each")
    go(recipe, run)
    assert all(-1 <= row["reward"] <= 1 for row in rows(run, "rl") if "reward" in row)
    process = started("run", recipe_file(tmp_path, recipe), "--out", again)
    metrics = again / "rl" / "metrics.jsonl"
    while process.poll() is None and not (
        (again / "rl.1").exists() and metrics.exists() and metrics.read_bytes().count(b"\n") > 3
    ):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    go(recipe, again)
    assert weights(again) == weights(run)
    with pytest.raises(InputError, match="that learned to judge steps"):
        other = whole_run(tmp_path_factory.getbasetemp()) / "reward" / "model"
        go(tiny(*told, "rl.step_rewards=least", f"rl.reward_model={other}"), again)
