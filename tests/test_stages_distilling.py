"""A policy's own responses: the best against the worst, or the best alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation_support import model, tokenizer
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.model.actor_critic import ActorCritic
from fourstage.objectives.kto import KTO
from fourstage.objectives.next_token import NextToken
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preferences import preference_of
from fourstage.parallel.group import Group
from fourstage.recipe import RL
from fourstage.rewards.total import Judged
from fourstage.stages.distilling import BestResponses, filled_up, of_trained, the_best
from fourstage.stages.drawing import Drawer
from fourstage.stages.episodes import Players, as_batch
from fourstage.stages.judging import Judge
from fourstage.stages.online import OnlinePairs, best_and_worst
from fourstage.stages.policy_guards import trains_responses
from fourstage.stages.preference import Finishing
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer
from fourstage.worlds import calibration as world
from training_support import same_bits, weights_of

TASKS = [world.instruction(0, "rl", index) for index in range(20)]
SETTINGS = {"rollout_batch": 16, "minibatches": 2, "max_new_tokens": 8, "missing_end_penalty": -3.0}


def players() -> Players:
    scorer = model(3, head="scalar")
    scorer.reward_mean, scorer.reward_std = 0.5, 2.0
    return Players(ActorCritic(model(1)), model(1).requires_grad_(False), scorer)


def drawing(made: Players, section: RL) -> tuple[Drawer, Judge]:
    policy = made.reference if section.algorithm == "bon" else made.trained.policy
    assert policy is not None
    drawer = Drawer(policy, tokenizer(), TASKS, section, 0, Group(), lambda line: None)
    penalty = section.missing_end_penalty
    return drawer, Judge(section, tokenizer(), made.reward_model, missing_end=penalty)


def distilling(algorithm: str = "raft", **told) -> BestResponses:
    distil = {"n": 4, **told}
    section = RL(algorithm=algorithm, group=4, **{**SETTINGS, "distil": distil})
    made = players()
    return BestResponses(made, *drawing(made, section))


def online(algorithm: str = "dpo", **told) -> OnlinePairs:
    section = RL(algorithm=algorithm, online=True, group=4, **SETTINGS, **told)
    made = players()
    context = made.reference.config.context
    finishing = Finishing(made.reference, algorithm == "kto", context, Group())
    return OnlinePairs(made, *drawing(made, section), finishing)


def train(made, objective, module, folder: Path, steps: int = 4) -> dict[str, torch.Tensor]:
    """The state of the optimiser in the end."""
    settings = TrainSettings(steps=steps, learning_rate=1e-2, warmup_steps=0, weight_decay=0.0)
    trainer = Trainer(module, objective, made, settings, folder, say=lambda line: None)
    trainer.train()
    return {name: value.clone() for name, value in trainer.update.optimiser.state().items()}


class Worth(Judge):
    """In place of a reward model's scores: `told` in turn."""

    told: tuple[float, ...]

    def __call__(self, tasks, responses) -> Judged:
        return Judged([self.told[i % len(self.told)] for i in range(len(responses))], {})


def worth(made: BestResponses | OnlinePairs, *numbers: float) -> None:
    """Has responses judged by these numbers in turn."""
    made.judge = Worth(made.section, tokenizer(), None)
    made.judge.told = numbers


def drawn(made: BestResponses | OnlinePairs) -> list[Response]:
    """What the first iteration of these draws from the reference."""
    policy = made.players.reference
    drawer = Drawer(policy, tokenizer(), TASKS, made.section, 0, Group(), lambda line: None)
    return drawer.respond(drawer.chosen(0, 4), 0)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_the_best_of_a_group_are_those_that_sorting_finds(keep, threshold):
    draw = torch.Generator().manual_seed(keep)
    rewards = torch.randint(0, 4, (40,), generator=draw) / 2
    wanted = []
    for first in range(0, 40, 5):
        values = rewards[first : first + 5].tolist()
        if threshold is None and len(set(values)) == 1:
            continue
        order = sorted(range(5), key=lambda i: (-values[i], i))[:keep]
        wanted += [first + i for i in order if threshold is None or values[i] >= threshold]
    assert wanted and the_best(rewards, 5, keep, threshold) == wanted


def test_the_best_and_the_worst_are_the_extremes_of_each_group():
    rewards = torch.tensor([1.0, 3.0, 3.0, 2.0, -1.0, -4.0])
    assert best_and_worst(rewards, 3).tolist() == [[1, 0], [3, 5]]


def test_what_fills_up_a_step_has_no_trained_token():
    made = distilling()
    responses = drawn(made)
    batch, rewards = as_batch(responses), torch.arange(16.0)
    found = filled_up(batch, [2], rewards, 3)
    assert len(found.lengths) == 3
    weights = found.streams["loss_weights"]
    assert int(weights.sum()) == len(responses[2].tokens)
    assert not weights[found.document_ids > 0].any()
    assert found.documents["prompt_tokens"].tolist() == [
        len(responses[i].prompt) for i in (2, 15, 14)
    ]
    of_trained(trains_responses)(None, None, found)
    assert len(filled_up(batch, [1, 2, 3], rewards, 2).lengths) == 3


def test_an_iteration_keeps_the_responses_of_highest_reward():
    made = distilling(keep=2)
    worth(made, 0.0, 2.0, 1.0, -1.0, 5.0, 4.0, 3.0, 6.0)
    kept = [made.batch(step) for step in range(2)]
    responses = drawn(made)
    rewards = torch.tensor(made.judge([], responses).scores).view(4, 4)
    best = rewards.topk(2).indices + 4 * torch.arange(4)[:, None]
    wanted = {(*responses[i].prompt, *responses[i].tokens[:-1]) for i in best.flatten().tolist()}
    found = set()
    for batch in kept:
        start = 0
        for length in batch.lengths:
            found.add(tuple(batch.tokens[start : start + length].tolist()))
            start += length
    assert found == wanted
    assert made.numbers["kept"] == 0.5
    assert made.numbers["reward_kept"] == pytest.approx(float(rewards.topk(2).values.mean()))
    assert made.numbers["kl"] == pytest.approx(0.0, abs=1e-4), "the policy is still its reference"


def test_best_of_n_draws_from_the_model_it_started_from_and_rounds_from_the_policy():
    for algorithm in ("bon", "raft"):
        made = distilling(algorithm)
        worth(made, 0.0, 2.0, 1.0, -1.0)
        with torch.no_grad():
            made.players.trained.policy.lm_head.weight.mul_(-2.0)
        made.batch(0)
        reference = as_batch(drawn(made))
        rows = {tuple(reference.select([i]).tokens.tolist()) for i in range(16)}
        mine = {tuple(made.rollouts.select([i]).tokens.tolist()) for i in range(4)}
        assert (mine <= rows) == (algorithm == "bon")


@pytest.mark.parametrize("told", [{}, {"threshold": 9.0}], ids=["tied", "a high bar"])
def test_a_constant_reward_or_a_bar_nobody_reaches_moves_nothing_that_is_at_rest(tmp_path, told):
    made = distilling(**told)
    worth(made, 1.0)
    policy = made.players.trained.policy
    before = weights_of(policy)
    train(made, NextToken(), policy, tmp_path)
    assert same_bits(weights_of(policy), before)
    assert made.numbers["kept"] == 0.0


def test_steps_without_anything_to_imitate_add_no_gradient_to_the_momentum(tmp_path):
    """The momentum of the steps before them goes on to move the weights, as after any step."""
    made = distilling()
    policy = made.players.trained.policy
    worth(made, 0.0, 2.0, 1.0, -1.0)
    learned = train(made, NextToken(), policy, tmp_path, steps=2)
    before = weights_of(policy)
    worth(made, 1.0)
    after = train(made, NextToken(), policy, tmp_path, steps=4)
    assert made.numbers["iteration"] == 1 and made.numbers["kept"] == 0.0
    moments = [name for name in learned if name.endswith(":exp_avg")]
    assert moments and any(learned[name].any() for name in moments)
    for name in moments:
        torch.testing.assert_close(after[name], TrainSettings.beta1**2 * learned[name])
    assert not same_bits(weights_of(policy), before)


@pytest.mark.parametrize("algorithm", ["dpo", "kto"])
def test_a_constant_reward_compares_nothing_and_moves_nothing(tmp_path, algorithm):
    made = online(algorithm)
    worth(made, 1.0)
    module = made.players.trained
    before = weights_of(module)
    objective = KTO() if algorithm == "kto" else DirectPreference(preference_of("dpo"))
    train(made, objective, module, tmp_path)
    assert same_bits(weights_of(module), before)
    assert made.numbers["dead_groups"] == 1.0


@pytest.mark.parametrize("algorithm", ["dpo", "kto"])
def test_groups_that_differ_are_learned_from(tmp_path, algorithm):
    made = online(algorithm)
    worth(made, 0.0, 2.0, 1.0, -1.0)
    module = made.players.trained
    before = weights_of(module)
    objective = KTO() if algorithm == "kto" else DirectPreference(preference_of("dpo"))
    train(made, objective, module, tmp_path, steps=2)
    assert not same_bits(weights_of(module), before)
    assert made.numbers["reward_gap"] == 3.0 and made.numbers["dead_groups"] == 0.0


def test_each_pair_holds_the_extremes_of_one_prompt():
    made = online()
    worth(made, 0.0, 2.0, 1.0, -1.0)
    pairs = made.roll(0)
    responses = drawn(made)
    assert pairs.documents["group"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    wanted = [responses[4 * group + place] for group in range(4) for place in (1, 3)]
    start = 0
    for length, each in zip(pairs.lengths, wanted, strict=True):
        assert pairs.tokens[start : start + length].tolist() == [*each.prompt, *each.tokens[:-1]]
        start += length


def test_the_steps_of_an_iteration_pass_over_all_its_pairs():
    made = online()
    seen = [made.batch(step) for step in range(2)]
    assert made.iteration == 0
    assert sum(len(batch.lengths) for batch in seen) == len(made.rollouts.lengths) == 8
    assert all((batch.documents["group"].view(-1, 2).diff() == 0).all() for batch in seen)
    reference = trained_logprobs(made.players.reference, seen[0])
    torch.testing.assert_close(seen[0].streams["ref_logprobs"], reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [online, distilling])
def test_what_was_drawn_is_given_back_with_the_same_bits(make):
    made = make()
    made.batch(0)
    state = made.state()
    again = make()
    for each in (made, again):
        with torch.no_grad():
            each.players.trained.policy.lm_head.weight.mul_(-2.0)
    again.restore(state)
    first, second = made.batch(1), again.batch(1)
    assert torch.equal(first.tokens, second.tokens)
    assert all(torch.equal(first.streams[name], second.streams[name]) for name in first.streams)
    assert again.metrics() == made.metrics()
