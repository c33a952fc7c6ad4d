"""Every algorithm of the table against plain loops over responses and tokens."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.errors import InputError
from fourstage.model.layout import Layout
from fourstage.objectives.algorithms import ALGORITHMS, CHOICES, algorithm_of
from fourstage.objectives.correction import ICEPOP, TIS, Correction
from fourstage.objectives.estimating import ADVANTAGES, leave_out
from fourstage.objectives.kl import ESTIMATORS
from fourstage.objectives.policy_gradient import PolicyGradient
from fourstage.objectives.preference_losses import LOSSES
from fourstage.objectives.preferences import PREFERENCES
from fourstage.objectives.surrogates import SURROGATES
from objectives_support import (
    assert_same_update,
    gradients,
    group_batch,
    tiny_model,
    update,
)

TEMPERATURE = 0.7
LONGEST = 12


def algorithm(name: str, **changes):
    longest = {"constant_length": LONGEST} if name == "dr-grpo" else {}
    return algorithm_of(name, **(longest | changes))


def responses(policy, batch: Batch) -> list[dict[str, Tensor]]:
    """Of each document its trained tokens: logp and every stream, [tokens] each."""
    found = []
    for index in range(len(batch.lengths)):
        alone = batch.select([index])
        hidden = policy(alone.tokens, Layout(alone.lengths))
        rows = torch.log_softmax(policy.logits(hidden) / TEMPERATURE, -1)
        trained = alone.streams["loss_weights"] != 0
        told = {name: stream[trained] for name, stream in alone.streams.items()}
        told["logp"] = rows[torch.arange(alone.cells), alone.targets][trained]
        told["entropy"] = -(rows.exp() * rows).sum(-1)[trained]
        found.append(told)
    return found


def lower(*values: Tensor) -> Tensor:
    return min(values, key=lambda value: value.item())


def bounded(value: Tensor, low: float, high: float) -> Tensor:
    return value if low <= value.item() <= high else value.detach().clamp(low, high)


def pessimistic(advantage: Tensor, ratio: Tensor, low: float, high: float) -> Tensor:
    return -lower(advantage * ratio, advantage * bounded(ratio, 1 - low, 1 + high))


def by_token(response: dict, loss) -> list[Tensor]:
    """`loss(advantage, ratio, logp)` of each token, the ratio being its own."""
    streams = (response["advantages"], response["logp"], response["old_logprobs"])
    return [loss(a, torch.exp(now - old), now) for a, now, old in zip(*streams, strict=True)]


def whole_ratio(response: dict, mean: bool) -> Tensor:
    difference = response["logp"] - response["old_logprobs"]
    return torch.exp(difference.mean() if mean else difference.sum())


def clip(low: float, high: float):
    return lambda advantage, ratio, logp: pessimistic(advantage, ratio, low, high)


def mean_of_tokens(batch: list[list[Tensor]]) -> Tensor:
    return sum(sum(tokens) for tokens in batch) / sum(len(tokens) for tokens in batch)


def dr_grpo(batch: list[dict]) -> Tensor:
    total = sum(sum(by_token(response, clip(0.2, 0.2))) for response in batch)
    return total / (len(batch) * LONGEST)


def dapo(batch: list[dict]) -> Tensor:
    return mean_of_tokens([by_token(response, clip(0.2, 0.28)) for response in batch])


def gspo(batch: list[dict]) -> Tensor:
    losses = [
        pessimistic(response["advantages"][0], whole_ratio(response, mean=True), 3e-4, 4e-4)
        for response in batch
    ]
    return sum(losses) / len(batch)


def cispo(batch: list[dict]) -> Tensor:
    def loss(advantage: Tensor, ratio: Tensor, logp: Tensor) -> Tensor:
        return -min(ratio.item(), 5.0) * advantage * logp

    return mean_of_tokens([by_token(response, loss) for response in batch])


def rloo(batch: list[dict]) -> Tensor:
    losses = [
        pessimistic(response["advantages"][0], whole_ratio(response, mean=False), 0.2, 0.2)
        for response in batch
    ]
    return sum(losses) / len(batch)


def reinforce(batch: list[dict]) -> Tensor:
    losses = [by_token(response, lambda a, ratio, logp: -a * ratio) for response in batch]
    return sum(sum(tokens) for tokens in losses) / len(batch)


def reinforce_plus_plus(batch: list[dict]) -> Tensor:
    return mean_of_tokens([by_token(response, clip(0.2, 0.2)) for response in batch])


FORMULAS = {
    "dr-grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
    "rloo": rloo,
    "reinforce": reinforce,
    "reinforce++": reinforce_plus_plus,
    "reinforce++-baseline": reinforce_plus_plus,
}


def reference_update(policy, loss: Tensor):
    policy.zero_grad()
    loss.backward()
    return loss.item(), gradients(policy)


def test_every_algorithm_has_a_formula_here_or_with_the_losses():
    assert set(ALGORITHMS) == {*FORMULAS, "ppo", "grpo"}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_algorithm_equals_a_loop_over_its_formula(name):
    policy, batch = tiny_model(seed=1), group_batch()
    expected = reference_update(policy, FORMULAS[name](responses(policy, batch)))
    objective = PolicyGradient(algorithm(name, kl_coefficient=0.0), TEMPERATURE)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-10)
    metrics = objective.sums(policy, batch)[1]
    cut = float(metrics["clip_fraction"][0] / metrics["clip_fraction"][1])
    assert cut == 0 if name in ("cispo", "reinforce") else 0 < cut < 1


def test_a_dual_clip_bounds_the_pull_of_bad_tokens():
    policy, batch, most = tiny_model(seed=1), group_batch(), 1.3
    seen = []

    def loss(advantage: Tensor, ratio: Tensor, logp: Tensor) -> Tensor:
        found = pessimistic(advantage, ratio, 0.2, 0.2)
        far = advantage.item() < 0 and found.item() > -advantage.item() * most
        seen.append(far)
        return -advantage * most if far else found

    losses = mean_of_tokens([by_token(each, loss) for each in responses(policy, batch)])
    assert any(seen)
    objective = PolicyGradient(algorithm("dapo", clip_high=0.2, dual_clip=most), TEMPERATURE)
    expected = reference_update(policy, losses)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-10)


def test_an_entropy_bonus_adds_the_gradient_of_the_mean_entropy():
    policy, batch = tiny_model(seed=1), group_batch()
    told = responses(policy, batch)
    entropy = mean_of_tokens([list(each["entropy"]) for each in told])
    expected = reference_update(policy, dapo(told) - 0.3 * entropy)
    objective = PolicyGradient(algorithm("dapo"), TEMPERATURE, entropy_coefficient=0.3)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-10)


def estimate_of_kl(estimator: str, difference: Tensor) -> Tensor:
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    return torch.exp(-difference) - 1 + difference


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr-grpo", "rloo"])
@pytest.mark.parametrize(
    "estimator, summed, weighted",
    [*product(["k1", "k2", "k3"], [False, True], [False]), ("k3", False, True), ("k3", True, True)],
)
def test_a_kl_in_the_loss_is_counted_once_a_token_or_once_a_response(
    name, estimator, summed, weighted
):
    policy, batch, beta = tiny_model(seed=1), group_batch(), 0.3
    totals, lengths = [], []
    for each in responses(policy, batch):
        difference = each["logp"] - each["ref_logprobs"]
        log_ratio = each["logp"] - each["old_logprobs"]
        if summed:
            difference, log_ratio = difference.sum(), log_ratio.sum()
        values = estimate_of_kl(estimator, difference)
        totals.append((values * torch.exp(log_ratio) if weighted else values).sum())
        lengths.append(len(each["logp"]))
    count = len(totals)
    kl = {
        "grpo": sum(t / n for t, n in zip(totals, lengths, strict=True)) / count,
        "dapo": sum(totals) / sum(lengths),
        "dr-grpo": sum(totals) / (count * LONGEST),
        "rloo": sum(totals) / count,
    }[name]
    plain = PolicyGradient(algorithm(name, kl_coefficient=0.0), TEMPERATURE)
    without = update(plain, policy, [batch], batch)
    of_kl = reference_update(policy, beta * kl)
    expected = (
        without[0] + of_kl[0],
        {key: gradient + of_kl[1][key] for key, gradient in without[1].items()},
    )
    told = {"kl_estimator": estimator, "kl_summed": summed, "kl_weighted": weighted}
    changed = algorithm(name, kl="loss", kl_coefficient=beta, **told)
    found = update(PolicyGradient(changed, TEMPERATURE), policy, [batch], batch)
    assert_same_update(found, expected, 1e-10)


@pytest.mark.parametrize(
    "correction",
    [
        Correction("truncate", "token", 0.0, 1.01),
        Correction("mask", "token", 0.99, 1.01),
        Correction("truncate", "sequence", 0.98, 1.02),
        Correction("mask", "sequence", 0.98, 1.02),
    ],
    ids=lambda each: f"{each.method}-{each.level}",
)
def test_a_correction_weighs_tokens_by_how_much_likelier_the_trainer_found_them(correction):
    policy, batch = tiny_model(seed=1), group_batch()
    losses, outside = [], []
    for each in responses(policy, batch):
        gap = each["old_logprobs"] - each["rollout_logprobs"]
        ratios = torch.exp(gap.sum().expand_as(gap) if correction.level == "sequence" else gap)
        tokens = []
        for loss, ratio in zip(by_token(each, clip(0.2, 0.28)), ratios, strict=True):
            inside = correction.low <= float(ratio) <= correction.high
            outside.append(not inside)
            held = min(max(float(ratio), correction.low), correction.high)
            tokens.append(loss * (held if inside or correction.method == "truncate" else 0.0))
        losses.append(tokens)
    assert 0 < sum(outside) < len(outside)
    objective = PolicyGradient(algorithm("dapo"), TEMPERATURE, correction=correction)
    expected = reference_update(policy, mean_of_tokens(losses))
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-10)
    total, count = objective.sums(policy, batch)[1]["correction_fraction"]
    assert float(total / count) == pytest.approx(sum(outside) / len(outside))


def test_a_sampler_that_agrees_needs_no_correction():
    policy, batch = tiny_model(seed=1), group_batch()
    batch.streams["rollout_logprobs"] = batch.streams["old_logprobs"].clone()
    plain = update(PolicyGradient(algorithm("dapo"), TEMPERATURE), policy, [batch], batch)
    for correction in (TIS, ICEPOP):
        objective = PolicyGradient(algorithm("dapo"), TEMPERATURE, correction=correction)
        assert_same_update(update(objective, policy, [batch], batch), plain, 1e-14)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_policy_far_from_that_of_the_rollout_has_finite_gradients(name):
    policy, batch = tiny_model(seed=1), group_batch()
    for sign in (-1, 1):
        batch.streams["old_logprobs"] = sign * 1e3 * batch.streams["loss_weights"]
        told = algorithm(name, kl="loss", kl_estimator="k1", kl_weighted=True, kl_coefficient=0.1)
        loss, found = update(PolicyGradient(told, TEMPERATURE), policy, [batch], batch)
        assert math.isfinite(loss)
        assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("name", ["dapo", "gspo", "dr-grpo"])
def test_a_response_that_is_left_out_might_as_well_not_be_there(name):
    policy, batch = tiny_model(seed=1), group_batch()
    rest = batch.select([0, 1, 3, 4, 5, 7])
    batch = leave_out(batch, torch.arange(8) % 4 == 2)
    assert batch.documents["left_out"].tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    objective = PolicyGradient(algorithm(name), TEMPERATURE)
    expected = update(objective, policy, [rest], rest)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-12)


def test_on_a_first_update_every_ratio_is_one_and_clips_leave_the_gradient_alone():
    policy, batch = tiny_model(seed=1), group_batch()
    old = [each["logp"].detach() for each in responses(policy, batch)]
    trained = batch.streams["loss_weights"] != 0
    batch.streams["old_logprobs"] = batch.streams["old_logprobs"].masked_scatter(
        trained, torch.cat(old)
    )
    for name in FORMULAS:
        objective = PolicyGradient(algorithm(name, kl_coefficient=0.0), TEMPERATURE)
        metrics = objective.sums(policy, batch)[1]
        assert float(metrics["ratio_deviation"][0]) < 1e-9, name
        assert float(metrics["clip_fraction"][0]) == 0, name
    # Per token, the same gradient from all three surrogates.
    for surrogate in ("cispo", "plain"):
        changed = algorithm("dapo", surrogate=surrogate)
        found = update(PolicyGradient(changed, TEMPERATURE), policy, [batch], batch)[1]
        plain = PolicyGradient(algorithm("dapo"), TEMPERATURE)
        expected = update(plain, policy, [batch], batch)[1]
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("grop", {}, "did you mean 'grpo'"),
        ("grpo", {"clip": 0.1}, "did you mean 'clip_"),
        ("ppo", {"ratio": "sequence_mean"}, "write ratio=token"),
        ("rloo", {"scale": "group"}, "write scale=none"),
        ("ppo", {"scale": "group"}, "write scale=batch"),
        ("dr-grpo", {}, "max_new_tokens"),
        ("grpo", {"clip_low": 1.5}, "write 0 to 1"),
        ("cispo", {"dual_clip": 7.0}, "leave it out"),
        ("dapo", {"dual_clip": 1.1}, "write a larger one"),
        ("grpo", {"kl_coefficient": -1.0}, "write 0 or more"),
        ("rloo", {"kl_summed": True}, "write kl=loss"),
        ("grpo", {"kl_estimator": "k4"}, "is not one of k1, k2, k3"),
        ("grpo", {"aggregation": "token-mean"}, "did you mean 'token_mean'"),
    ],
)
def test_what_does_not_go_together_is_refused(name, changes, message):
    with pytest.raises(InputError, match=message):
        algorithm_of(name, **changes)


def test_a_correction_that_shuts_out_agreement_is_refused():
    with pytest.raises(InputError, match="high above it"):
        Correction("mask", "token", 0.5, 0.9)


def test_the_names_of_a_recipe_are_those_of_the_functions():
    assert CHOICES["advantage"] == tuple(sorted(ADVANTAGES, key=CHOICES["advantage"].index))
    assert set(CHOICES["surrogate"]) == set(SURROGATES)
    assert set(CHOICES["kl_estimator"]) == set(ESTIMATORS)
    assert {each.loss for each in PREFERENCES.values()} == set(LOSSES)
    for each in ALGORITHMS.values():
        if each.aggregation != "constant":
            each.check()


def test_a_recipe_can_be_checked_without_torch():
    modules = "fourstage.objectives.algorithms, fourstage.objectives.preferences"
    told = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


def test_published_settings_are_kept():
    told = {name: (each.clip_low, each.clip_high) for name, each in ALGORITHMS.items()}
    assert told["dapo"] == (0.2, 0.28)
    assert told["gspo"] == (3e-4, 4e-4)
    assert math.isclose(1 + told["cispo"][1], 5.0) and told["cispo"][0] == 1.0
    assert (TIS.high, ICEPOP.low, ICEPOP.high) == (2.0, 0.5, 5.0)
