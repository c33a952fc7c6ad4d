"""The update does not depend on how a step is cut, ordered or packed; sabotage is seen."""

from __future__ import annotations

import pytest
import torch

from fourstage.data.batch import Batch, Example
from fourstage.objectives.algorithms import Algorithm, algorithm_of
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.correction import Correction
from fourstage.objectives.grpo import GRPO
from fourstage.objectives.kto import KTO
from fourstage.objectives.next_token import NextToken
from fourstage.objectives.objective import with_survey
from fourstage.objectives.policy_gradient import PolicyGradient
from fourstage.objectives.ppo import PPO
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preferences import PREFERENCES, preference_of
from objectives_support import (
    ScorerWithLanguage,
    assert_same_update,
    double_streams,
    group_batch,
    kto_batch,
    language_batch,
    pair_batch,
    preference_batch,
    random_examples,
    rollout_batch,
    tiny_actor_critic,
    tiny_model,
    update,
)


def algorithm(name: str, **changes) -> Algorithm:
    longest = {"constant_length": 12} if name == "dr-grpo" else {}
    return algorithm_of(name, **longest, **changes)


def every_option() -> PolicyGradient:
    """Sequence ratios, dual clip, a summed and weighted KL, entropy and a correction."""
    told = algorithm(
        "rloo",
        dual_clip=1.5,
        kl="loss",
        kl_estimator="k3",
        kl_summed=True,
        kl_weighted=True,
    )
    return PolicyGradient(told, 0.7, 0.01, Correction("mask", "sequence", 0.95, 1.05))


def policy():
    return tiny_model("language", 1)


def surveyed_batch() -> Batch:
    return with_survey(KTO(0.5), policy(), kto_batch())


CASES = {
    "next_token": (NextToken, tiny_model, language_batch),
    "next_token_with_z_loss": (lambda: NextToken(0.1), tiny_model, language_batch),
    "bradley_terry": (lambda: BradleyTerry(0.01, 0.2), ScorerWithLanguage, pair_batch),
    "ppo": (lambda: PPO(temperature=0.7), tiny_actor_critic, rollout_batch),
    "grpo": (lambda: GRPO(0.2, 0.28, 0.04, 0.7), tiny_actor_critic, group_batch),
    **{
        name: (lambda name=name: PolicyGradient(algorithm(name), 0.7), tiny_actor_critic, rollouts)
        for name, rollouts in [
            *((name, group_batch) for name in ("dr-grpo", "dapo", "gspo", "cispo", "rloo")),
            *((name, rollout_batch) for name in ("reinforce", "reinforce++")),
        ]
    },
    "policy_gradient_with_all_options": (every_option, tiny_actor_critic, group_batch),
    **{
        name: (lambda name=name: DirectPreference(preference_of(name)), policy, preference_batch)
        for name in PREFERENCES
    },
    "kto": (lambda: KTO(0.5, 1.0, 1.5), policy, surveyed_batch),
}


@pytest.fixture(params=CASES)
def case(request):
    objective, module, batch = CASES[request.param]
    return objective(), module(), batch()


def shuffled(batch: Batch, seed: int) -> Batch:
    """The documents in another order; the chosen one of a pair stays before the rejected."""
    count = len(batch.lengths)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    if "group" in batch.documents:
        order = sorted(order, key=lambda i: i % 2)
    return batch.select(order)


@pytest.mark.parametrize("max_tokens", [1, 13, 30, 45])
def test_update_is_independent_of_micro_batch_size(case, max_tokens):
    objective, module, batch = case
    parts = batch.split(max_tokens)
    assert len(parts) > 1
    whole = update(objective, module, [batch], batch)
    assert_same_update(update(objective, module, parts, batch), whole, 1e-11)


@pytest.mark.parametrize("seed", [1, 2])
def test_update_is_independent_of_order(case, seed):
    objective, module, batch = case
    other = shuffled(batch, seed)
    whole = update(objective, module, [batch], batch)
    assert_same_update(update(objective, module, [other], other), whole, 1e-11)
    assert_same_update(update(objective, module, other.split(25), other), whole, 1e-11)


def test_counts_add_up_over_micro_batches(case):
    objective, _, batch = case
    parts = [objective.counts(part) for part in batch.split(13)]
    whole = objective.counts(batch)
    assert whole == {name: sum(part[name] for part in parts) for name in whole}


def test_metrics_add_up_over_micro_batches(case):
    objective, module, batch = case
    parts = [objective.sums(module, part)[1] for part in batch.split(13)]
    for name, (total, count) in objective.sums(module, batch)[1].items():
        assert sum(part[name][0] for part in parts) == pytest.approx(float(total), abs=1e-9), name
        assert sum(part[name][1] for part in parts) == pytest.approx(float(count)), name


def test_update_in_single_precision_is_independent_of_micro_batch_size():
    module, batch = tiny_actor_critic(torch.float32), rollout_batch()
    batch.streams = {name: stream.float() for name, stream in batch.streams.items()}
    whole = update(PPO(temperature=0.7), module, [batch], batch)
    cut = update(PPO(temperature=0.7), module, batch.split(13), batch)
    assert_same_update(cut, whole, 1e-5)


@pytest.mark.parametrize("padding", [1, 7])
def test_update_is_independent_of_padding_behind_documents(padding):
    examples = random_examples(6)
    padded = [
        Example(
            torch.cat(
                [torch.from_numpy(e.tokens), torch.zeros(padding, dtype=torch.int64)]
            ).numpy(),
            torch.cat([torch.from_numpy(e.loss_mask), torch.zeros(padding).bool()]).numpy(),
        )
        for e in examples
    ]
    model = tiny_model()
    plain, longer = (double_streams(Batch.language(rows)) for rows in (examples, padded))
    expected = update(NextToken(), model, [plain], plain)
    assert_same_update(update(NextToken(), model, [longer], longer), expected, 1e-11)


def test_scores_do_not_depend_on_the_rest_of_the_batch():
    model, batch = tiny_model("scalar"), pair_batch()
    together = model.scores(model(batch.tokens, batch.layout)[batch.last_cells])
    for i in range(len(batch.lengths)):
        alone = batch.select([i])
        score = model.scores(model(alone.tokens, alone.layout)[alone.last_cells])
        torch.testing.assert_close(score[0], together[i], rtol=0, atol=1e-12)


def fitted(objective, module, batch: Batch, steps: int = 60) -> None:
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(steps):
        update(objective, module, [batch], batch)
        optimiser.step()


def test_a_shifted_label_is_seen_in_the_loss_of_right_labels():
    right = language_batch(4, seed=3)
    shifted = language_batch(4, seed=3)
    shifted.targets = shifted.targets.roll(1)
    loss = {}
    for name, batch in (("right", right), ("shifted", shifted)):
        model = tiny_model(seed=4)
        fitted(NextToken(), model, batch)
        loss[name] = update(NextToken(), model, [right], right)[0]
    assert loss["right"] < 0.5
    assert loss["shifted"] > 4 * loss["right"] + 1


def test_a_flipped_preference_is_seen_in_the_accuracy():
    right = pair_batch(4, seed=3)
    del right.documents["margins"]
    flipped = right.select([1, 0, 3, 2, 5, 4, 7, 6])
    accuracy = {}
    for name, batch in (("right", right), ("flipped", flipped)):
        model = tiny_model("scalar", seed=4)
        fitted(BradleyTerry(), model, batch)
        total, count = BradleyTerry().sums(model, right)[1]["accuracy"]
        accuracy[name] = float(total / count)
    assert accuracy == {"right": 1.0, "flipped": 0.0}


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_flipped_advantage_lowers_what_was_to_be_raised(name):
    make, module, make_batch = CASES[name]
    batch = make_batch()
    objective = make()
    objective.kl_coefficient = 0.0
    expected = update(objective, module(), [batch], batch)[1]
    batch.streams["advantages"] = -batch.streams["advantages"]
    flipped = update(objective, module(), [batch], batch)[1]
    dot = sum((expected[key] * flipped[key]).sum() for key in expected if key.startswith("policy."))
    assert dot < 0


def test_a_micro_batch_without_trained_tokens_adds_nothing(case):
    objective, module, batch = case
    silent = batch.select(range(len(batch.lengths)))
    silent.streams["loss_weights"] = torch.zeros_like(silent.streams["loss_weights"])
    sums, metrics = objective.sums(module, silent)
    for name in ("pairs", "responses"):  # a comparison needs no trained tokens
        sums.pop(name, None)
    for name, value in sums.items():
        value.backward(retain_graph=True)
        assert value.item() == 0.0, name
    assert all(torch.isfinite(total) for total, _ in metrics.values())
