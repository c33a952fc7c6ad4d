"""Rollouts token by token: what is held, what the present policy says, in the terminal and on a
page."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from rich.console import Console

from fourstage.data.batch import Batch, Example
from fourstage.errors import InputError
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.recipe import RL
from fourstage.reporting.rollouts.episodes import chosen, episodes_of
from fourstage.reporting.rollouts.held import load_rollout
from fourstage.reporting.rollouts.page import rollout_page
from fourstage.reporting.rollouts.shades import Shading, shadings
from fourstage.reporting.rollouts.terminal import print_rollout
from fourstage.stages.revisiting import with_present
from fourstage.training.checkpoint import Checkpoints, Snapshot
from pipeline_support import call, whole_run
from test_stages_algorithms import trained
from test_stages_rollouts import WORDS, section
from tiny_models import tiny_model

STREAMS = (
    "rollout_logprobs",
    "old_logprobs",
    "ref_logprobs",
    "rewards",
    "old_values",
    "advantages",
)


class Letters:
    """Token i is the i-th letter; 0 is a line break, and 26 a tag that must stay text."""

    def token_text(self, token: int) -> str:
        return {0: "\n", 26: "<script>"}.get(token, chr(ord("a") + token - 1))


def rollouts(first: int = 1) -> Batch:
    """Two episodes: two tokens answer two, and one answers one."""
    rows = [([first, 2, 3, 0], [0, 0, 1, 1]), ([4, 5], [0, 1])]
    batch = Batch.language([Example(np.array(i), np.array(m, bool)) for i, m in rows])
    for place, name in enumerate(STREAMS):
        batch.streams[name] = torch.arange(4.0) + place
    batch.documents |= {
        "scores": torch.tensor([0.5, -1.0]),
        "prompt_tokens": torch.tensor([2, 1]),
    }
    return batch


def printed(batch: Batch, width: int = 160, **options) -> str:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    print_rollout(episodes_of(batch), Letters(), out, **options)
    return out.file.getvalue()


def test_every_response_token_is_shown_with_what_is_known_of_it():
    text = printed(rollouts(), most=1)
    summary = "episode 0 of 2: score 0.500, rewards sum to 9, KL −2 nats, 2 tokens"
    assert summary in text
    row = next(line for line in text.splitlines() if " c " in line).split()
    # The cell before token 2 holds 1, 2, 3, then KL = old - ref, then 4, 5, 6.
    assert row == ["2", "c", "+1.000", "+2.000", "+3.000", "−1.000", "+4.000", "+5.000", "+6.000"]
    sums = next(line for line in text.splitlines() if " sum  " in line).split()
    assert sums == ["sum", "+3.000", "+5.000", "+7.000", "−2.000", "+9.000"]


def test_a_narrow_terminal_gets_more_tables_and_loses_no_number():
    text = printed(rollouts(), width=40, most=1)
    assert all(len(line.rstrip()) <= 40 for line in text.splitlines())
    for number in ("+1.000", "+2.000", "+3.000", "−1.000", "+4.000", "+5.000", "+6.000"):
        assert number in text


def test_without_colours_marks_and_a_legend_tell_the_sign_and_the_size():
    batch = rollouts()
    batch.streams["advantages"] = torch.tensor([0.0, 4.0, -1.0, 0.1])
    text = printed(batch)
    assert re.search(r"▲\s+≥ 1\.9.*▽\s+≤ −0\.48", text)
    lines = text.splitlines()
    assert "c▲⏎▽" in lines and "e" in lines
    by_kl = printed(batch, colour="KL").splitlines()
    assert by_kl[0].startswith("KL:") and "c▼⏎▼" in by_kl


def test_a_ratio_is_coloured_by_its_logarithm():
    shading = Shading("ratio", float(np.log(2)))
    assert shading.bound(1.0) == "×2" and shading.below(1.0) == "×0.5"
    batch = rollouts()
    batch.streams["ratios"] = torch.tensor([1.0, 2.0, 0.5, 1.0])
    known = shadings(episodes_of(batch))
    assert [round(known["ratio"].strength(v), 2) for v in np.log([2.0, 0.5, 1.0])] == [1, -1, 0]


def test_what_cannot_be_shown_is_told_with_what_can():
    with pytest.raises(InputError, match="0 to 1"):
        chosen(episodes_of(rollouts()), 2, 1)
    with pytest.raises(InputError, match="did you mean 'advantage'"):
        printed(rollouts(), colour="advantages")
    with pytest.raises(InputError, match="hold none; write one of advantage, KL, reward, value"):
        printed(rollouts(), colour="ratio")


def test_a_response_that_is_left_out_of_the_loss_is_shown_as_such():
    batch = rollouts()
    batch.streams["loss_weights"][3] = 0
    last = episodes_of(batch)[1]
    assert last.response == [5] and "left out of the loss" in last.summary(2)


def test_rollouts_of_which_only_the_text_is_held_are_shown():
    batch = rollouts()
    batch.streams = {"loss_weights": batch.streams["loss_weights"]}
    text = printed(batch)
    assert "no numbers to colour by" in text and "episode 1 of 2: score −1, 1 tokens" in text


def conversation() -> Batch:
    """An answer of one token, two that an environment wrote, and another answer of one."""
    row, mask = [1, 2, 3, 4, 5], [0, 1, 0, 0, 1]
    batch = Batch.language([Example(np.array(row), np.array(mask, bool))])
    trained = batch.streams["loss_weights"] != 0
    batch.streams["observed"] = (~trained).float()
    for place, name in enumerate(STREAMS):
        batch.streams[name] = torch.where(trained, torch.arange(4.0) + place + 1, 0.0)
    batch.documents |= {"scores": torch.tensor([0.5]), "prompt_tokens": torch.tensor([1])}
    return batch


def test_what_an_environment_wrote_is_shown_and_has_no_numbers():
    (episode,) = episodes_of(conversation())
    assert (episode.prompt, episode.response) == ([1], [2, 3, 4, 5])
    assert episode.drawn.tolist() == [True, False, False, True]
    assert "2 tokens" in episode.summary(1)
    rows = [line.split() for line in printed(conversation()).splitlines()]
    assert ["2", "c"] in rows and ["3", "d"] in rows
    assert ["4", "e", "+4.000"] in [row[:3] for row in rows]
    page = rollout_page([episode], [episode], Letters(), "title", "words")
    assert page.count("written by the environment") == 2


@pytest.mark.parametrize("kind", ["token", "sequence_mean"])
def test_the_ratio_of_an_episode_counts_what_the_policy_drew(policy, kind):
    batch = conversation()
    now = trained_logprobs(policy, batch)
    batch.streams["old_logprobs"] = now - torch.tensor([0.4, 0.0, 0.0, 0.2])
    (episode,) = episodes_of(with_present(batch, policy, ALGORITHMS[kind]))
    gaps = {"token": [0.4, 0.2], "sequence_mean": [0.3, 0.3]}[kind]
    wanted = torch.tensor([gaps[0], 0.0, 0.0, gaps[1]]).exp()
    torch.testing.assert_close(episode.columns["ratio"], wanted)
    assert not episode.columns["now"][1:3].any()
    assert not episode.clipped[1:3].any()


def test_an_episode_is_finished_where_all_its_answers_are_and_has_no_gold(run):
    from fourstage.reporting.batches import open_tokenizer
    from fourstage.stages.revisiting import with_outcomes

    tokenizer = open_tokenizer(run)
    stop = tokenizer.end_of_turn
    for first, is_finished in ((stop, True), (7, False)):
        batch = conversation()
        batch.tokens[1], batch.targets[0], batch.targets[3] = first, first, stop
        (episode,) = episodes_of(with_outcomes(batch, run, tokenizer, [0]))
        assert episode.is_finished == is_finished and "gold" not in episode.numbers


def held(folder, source, step: int) -> Checkpoints:
    checkpoints = Checkpoints(folder / "rl" / "checkpoints", keep=9)
    checkpoints.save(Snapshot(step, {"model": {"w": torch.zeros(1)}}, {}, source))
    return checkpoints


def test_rollouts_come_back_from_a_checkpoint_without_touching_it(tmp_path):
    held(tmp_path, {"iteration": 3, "rollouts": rollouts().state()}, 40)
    held(tmp_path, {"rollouts": None}, 50)
    being_written = tmp_path / "rl" / "checkpoints" / ".step-00000060.partial"
    being_written.mkdir()
    step, batch = load_rollout(tmp_path, 40)
    assert step == 40 and batch.lengths == (3, 1)
    assert torch.equal(batch.streams["rewards"], rollouts().streams["rewards"])
    with pytest.raises(InputError, match="40, 50"):
        load_rollout(tmp_path, 41)
    with pytest.raises(InputError, match="no rollouts"):
        load_rollout(tmp_path)
    with pytest.raises(InputError, match="no checkpoint"):
        load_rollout(tmp_path / "elsewhere")
    assert being_written.is_dir()


def test_a_checkpoint_that_goes_while_it_is_read_is_an_input_error(tmp_path):
    held(tmp_path, {"rollouts": rollouts().state()}, 40)
    (tmp_path / "rl" / "checkpoints" / "step-00000040" / "source.safetensors").unlink()
    with pytest.raises(InputError, match="choose another --step"):
        load_rollout(tmp_path)


def test_what_learns_from_given_comparisons_says_where_to_look(tmp_path):
    held(tmp_path, {}, 40)
    with pytest.raises(InputError, match=r"inspect batch .* --stage rl"):
        load_rollout(tmp_path)


@pytest.fixture
def policy():
    return tiny_model(vocab_size=27).eval()


ALGORITHMS = {
    "token": RL(algorithm="ppo", clip_range=0.1),
    "sequence_mean": RL(algorithm="gspo"),
    "sequence_sum": RL(algorithm="rloo"),
    "cispo": RL(algorithm="cispo"),
    "plain": RL(algorithm="reinforce"),
}


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_ratio_and_clip_are_those_of_the_algorithms_loss(policy, kind):
    section = ALGORITHMS[kind]
    batch = rollouts()
    now = trained_logprobs(policy, batch, section.temperature)
    gaps = torch.tensor([0.0, 0.3, -0.5, 0.2])
    batch.streams["old_logprobs"] = now - gaps
    batch.streams["advantages"] = torch.tensor([0.0, 1.0, 1.0, -1.0])
    first, second = episodes_of(with_present(batch, policy, section))
    per_token = {"sequence_mean": [-0.1, -0.1], "sequence_sum": [-0.2, -0.2]}
    wanted = torch.tensor(per_token.get(kind, [0.3, -0.5])).exp()
    assert torch.allclose(first.columns["ratio"], wanted, atol=1e-5)
    assert torch.allclose(first.columns["now"], now[1:3], atol=1e-5)
    row = section.row()
    low, high = 1 - row.clip_low, 1 + row.clip_high
    outside = [not low <= ratio <= high for ratio in wanted.tolist()]
    expected = {
        "token": [True, False],  # a good token that became likelier; less likely, it may still rise
        "sequence_mean": [False, False],
        "sequence_sum": [False, False],
        "cispo": outside,
        "plain": [False, False],
    }[kind]
    assert first.clipped.tolist() == expected
    # A bad token that became likelier is held by no clip of a minimum.
    assert second.clipped.tolist() == [kind == "cispo" and not low <= np.exp(0.2) <= high]


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "cispo", "rloo"])
def test_what_is_clipped_is_what_the_next_update_counts_as_clipped(algorithm, tmp_path):
    told = {"algorithm": algorithm, "group": 4, "epochs": 2, "minibatches": 1, "rewards": WORDS}
    if algorithm == "cispo":
        # Its own bounds, 0 and 5, are far away.
        told |= {"clip_low": 0.02, "clip_high": 0.02}
    made, _ = trained(tmp_path / "once", 1, **told)
    found = episodes_of(with_present(made.rollouts, made.players.trained.policy, section(**told)))
    _, rows = trained(tmp_path / "twice", 2, **told)
    clipped = torch.cat([each.clipped for each in found]).float().mean().item()
    assert clipped == pytest.approx(rows[1]["clip_fraction"], abs=1e-6) and clipped > 0
    ratios = torch.cat([each.columns["ratio"] for each in found])
    assert ratios.mean().item() == pytest.approx(rows[1]["ratio"], abs=1e-5)


def test_the_parts_of_a_reward_are_told(tmp_path):
    made, _ = trained(tmp_path, 1, algorithm="grpo", group=4, rewards=WORDS)
    numbers = episodes_of(made.rollouts)[0].numbers
    assert {"score", "reward/constraints", "reward/length"} <= numbers.keys()
    parts = numbers["reward/constraints"] + numbers["reward/length"]
    assert numbers["score"] == pytest.approx(parts)


def test_of_responses_to_be_imitated_there_is_what_the_policy_says_now(policy):
    batch = rollouts()
    batch.streams = {"loss_weights": batch.streams["loss_weights"]}
    found = with_present(batch, policy, RL(algorithm="raft"))
    assert list(episodes_of(found)[0].columns) == ["now"]


@pytest.mark.parametrize("prefix", ["policy.", ""])
def test_weights_are_found_with_and_without_a_critic_beside_them(policy, prefix):
    from fourstage.stages.revisiting import put_weights

    other = tiny_model(vocab_size=27, seed=1)
    held = {prefix + name: tensor for name, tensor in other.state_dict().items()}
    put_weights(policy, held)
    assert all(
        torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True)
    )


def test_the_page_holds_every_number_and_nothing_from_outside():
    batch = rollouts(first=26)
    batch.streams["clipped"] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    episodes = episodes_of(batch)
    page = rollout_page(episodes, episodes, Letters(), "Rollouts of <x>", "words & more")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|https?:|url\(|@import", page)
    seen = Elements()
    seen.feed(page)
    buttons = [each for tag, each in seen.found if tag == "input"]
    assert [each["id"] for each in buttons] == ["by-advantage", "by-KL", "by-reward", "by-value"]
    assert ["checked" in each for each in buttons] == [True, False, False, False]
    tokens = [each for tag, each in seen.found if each.get("class", "").split()[:1] == ["t"]]
    assert [each["class"] for each in tokens] == ["t cut", "t", "t"]
    assert "--advantage:rgba(" in tokens[0]["style"] and "--KL:rgba(" in tokens[0]["style"]
    assert "old  +2.0000" in tokens[0]["title"] and "clipped" in tokens[0]["title"]
    assert "KL  −1.0000" in tokens[0]["title"] and ">−2.000<" in page
    assert not re.search(r"[\s>]-\d", "".join(each.get("title", "") for each in tokens) + page)


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return whole_run(tmp_path_factory.getbasetemp())


def test_the_command_shows_the_ratio_of_a_finished_run_and_its_gold(run, capsys, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, out, _ = call(capsys, "inspect", "rollout", run, "--episodes", "1")
    assert code == 0 and "gold" in out and "ratio" in out and "now is the policy" in out
    page = tmp_path / "rollout.html"
    code, out, _ = call(capsys, "inspect", "rollout", run, "--html", page, "--colour", "ratio")
    assert code == 0 and page.read_text("utf-8").count('class="episode"') == 16
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_first_update_of_an_iteration_begins_at_a_ratio_of_one(run, capsys):
    from fourstage.reporting.batches import open_tokenizer, resolved_recipe
    from fourstage.stages.revisiting import present_policy

    recipe, tokenizer = resolved_recipe(run), open_tokenizer(run)
    # At step 2 the next iteration draws with the weights that the checkpoint of step 2 holds.
    policy = present_policy(run, recipe, tokenizer, 2)
    of_the_next = load_rollout(run, 4)[1]
    episodes = episodes_of(with_present(of_the_next, policy, recipe.rl))
    ratios = torch.cat([each.columns["ratio"] for each in episodes])
    assert torch.allclose(ratios, torch.ones_like(ratios), atol=1e-4)
    assert not any(each.clipped.any() for each in episodes)


def test_without_the_model_it_started_from_the_checkpoint_alone_is_shown(run, capsys, tmp_path):
    import shutil

    copy = tmp_path / "run"
    for part in ("tokenizer", "rl", "data"):
        shutil.copytree(run / part, copy / part)
    shutil.copy(run / "recipe.yaml", copy)
    code, _, err = call(capsys, "inspect", "rollout", copy)
    assert code == 2 and "--no-model" in err
    code, out, _ = call(capsys, "inspect", "rollout", copy, "--no-model", "--step", "2")
    assert code == 0 and "advantage" in out and "ratio" not in out
    code, _, err = call(capsys, "inspect", "rollout", copy, "--step", "3", "--no-model")
    assert code == 2 and "2, 4" in err
