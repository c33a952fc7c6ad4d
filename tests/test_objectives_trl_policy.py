"""Policy losses, their gradients and their numbers equal TRL's own code on identical tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fourstage.objectives.algorithms import algorithm_of
from fourstage.objectives.correction import Correction
from fourstage.objectives.grpo import GRPO
from fourstage.objectives.policy_gradient import PolicyGradient
from objectives_support import assert_same_update, gradients, group_batch, tiny_model, update
from trl_support import newest, rectangle, tails, trainer_stub

TEMPERATURE, LONGEST = 0.7, 12


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl")
    from trl.trainer import grpo_trainer, rloo_trainer, utils

    return SimpleNamespace(grpo=grpo_trainer, rloo=rloo_trainer, utils=utils)


def trl_inputs(trl, policy, batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities and entropies with gradient, and what a loss of TRL is given."""
    sizes, mask = list(batch.lengths), batch.streams["loss_weights"] != 0
    hidden = policy(batch.tokens, batch.layout)
    parts = zip(hidden.split(sizes), mask.split(sizes), strict=True)
    logits = policy.logits(rectangle([rows[trained] for rows, trained in parts]))
    completion = tails(batch, batch.targets)
    now = trl.utils.selective_log_softmax(logits, completion, temperature=TEMPERATURE)
    inputs = {
        "prompt_ids": completion[:, :1],
        "prompt_mask": torch.ones_like(completion[:, :1]),
        "completion_ids": completion,
        "completion_mask": tails(batch, mask.double()),
        "advantages": tails(batch, batch.streams["advantages"])[:, 0],
        "old_per_token_logps": tails(batch, batch.streams["old_logprobs"]),
        "ref_per_token_logps": tails(batch, batch.streams["ref_logprobs"]),
        "num_items_in_batch": mask.sum().double(),
    }
    return now, trl.utils.entropy_from_logits(logits / TEMPERATURE), inputs


def grpo_stub(now: Tensor, entropies: Tensor, **told):
    """GRPO as TRL has it by default, but for what is told."""
    args = {"use_bias_correction_kl": False, "delta": None} | told.pop("args", {})
    plain = {
        "args": SimpleNamespace(**args),
        "_get_per_token_logps_and_entropies": lambda *_, **__: (now, entropies, None),
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "max_completion_length": LONGEST,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
    }
    return trainer_stub(**(plain | told))


def algorithm(name: str, beta: float = 0.0, **changes):
    return algorithm_of(name, kl_coefficient=beta, **changes)


DUAL = {"dual_clip": 1.3, "clip_high": 0.28}
# Ours, and what TRL calls the same.
GRPO_CASES = {
    "grpo": (algorithm("grpo"), {"loss_type": "grpo"}),
    "grpo with KL": (algorithm("grpo", 0.04), {"loss_type": "grpo", "beta": 0.04}),
    "grpo with weighted KL": (
        algorithm("grpo", 0.04, kl_weighted=True),
        {"loss_type": "grpo", "beta": 0.04, "args": {"use_bias_correction_kl": True}},
    ),
    "grpo with dual clip": (
        algorithm("grpo", **DUAL),
        {"loss_type": "grpo", "epsilon_high": 0.28, "args": {"delta": 1.3}},
    ),
    "dr-grpo": (algorithm("dr-grpo", constant_length=LONGEST), {"loss_type": "dr_grpo"}),
    "dapo": (algorithm("dapo"), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "bnpo": (algorithm("dapo", clip_high=0.2), {"loss_type": "bnpo"}),
    "cispo": (algorithm("cispo"), {"loss_type": "cispo", "epsilon_high": 5.0}),
    "cispo, tight": (
        algorithm("cispo", clip_high=0.1),
        {"loss_type": "cispo", "epsilon_high": 1.1},
    ),
    "gspo": (
        algorithm("gspo"),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
        },
    ),
    "gspo with KL": (
        algorithm("gspo", 0.04, kl="loss", kl_estimator="k3"),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
            "beta": 0.04,
        },
    ),
}


@pytest.mark.parametrize("case", GRPO_CASES)
def test_algorithms_of_groups_equal_trl(trl, case):
    told, theirs = GRPO_CASES[case]
    policy, batch = tiny_model(seed=1), group_batch()
    now, entropies, inputs = trl_inputs(trl, policy, batch)
    stub = grpo_stub(now, entropies.detach(), **theirs)
    policy.zero_grad()
    loss = trl.grpo.GRPOTrainer._compute_loss(stub, policy, inputs)
    loss.backward()
    expected = (loss.item(), gradients(policy))
    objective = PolicyGradient(told, TEMPERATURE)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-9)
    metrics = objective.sums(policy, batch)[1]
    means = {name: float(total / count) for name, (total, count) in metrics.items()}
    numbers = newest(stub)
    assert means["entropy"] == pytest.approx(numbers["entropy"], abs=1e-5)
    if told.kl_coefficient and not told.kl_weighted:
        assert means["kl_k3"] == pytest.approx(numbers["kl"], abs=1e-5)
    if told.surrogate == "clipped" and told.ratio == "token" and told.dual_clip is None:
        assert means["clip_fraction"] == pytest.approx(numbers["clip_ratio/region_mean"], abs=1e-5)
        assert means["clip_fraction"] > 0


def test_the_class_that_was_here_first_equals_trl(trl):
    policy, batch = tiny_model(seed=1), group_batch()
    now, entropies, inputs = trl_inputs(trl, policy, batch)
    stub = grpo_stub(now, entropies.detach(), loss_type="grpo", beta=0.04, epsilon_high=0.28)
    policy.zero_grad()
    loss = trl.grpo.GRPOTrainer._compute_loss(stub, policy, inputs)
    loss.backward()
    objective = GRPO(0.2, 0.28, kl_coefficient=0.04, temperature=TEMPERATURE)
    expected = (loss.item(), gradients(policy))
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-9)


def test_an_entropy_bonus_equals_trl(trl):
    policy, batch = tiny_model(seed=1), group_batch()
    now, entropies, inputs = trl_inputs(trl, policy, batch)
    stub = grpo_stub(
        now, entropies, loss_type="grpo", _entropy_bonus_enabled=True, entropy_coef=0.3
    )
    policy.zero_grad()
    loss = trl.grpo.GRPOTrainer._compute_loss(stub, policy, inputs)
    loss.backward()
    expected = (loss.item(), gradients(policy))
    objective = PolicyGradient(algorithm("grpo"), TEMPERATURE, entropy_coefficient=0.3)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-9)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("method", ["truncate", "mask"])
def test_corrections_equal_trl(trl, level, method):
    policy, batch = tiny_model(seed=1), group_batch()
    now, entropies, inputs = trl_inputs(trl, policy, batch)
    # Its weights are made in the middle of its rollouts; these lines are theirs.
    difference = inputs["old_per_token_logps"] - tails(batch, batch.streams["rollout_logprobs"])
    difference = difference * inputs["completion_mask"]
    ratio = torch.exp(difference.sum(-1, keepdim=True) if level == "sequence" else difference)
    if method == "truncate":
        inputs["importance_sampling_ratio"] = torch.clamp(ratio, min=0.99, max=1.01)
    else:
        inputs["importance_sampling_ratio"] = ratio.masked_fill((ratio < 0.99) | (ratio > 1.01), 0)
    stub = grpo_stub(now, entropies.detach(), loss_type="grpo", use_vllm=True)
    policy.zero_grad()
    loss = trl.grpo.GRPOTrainer._compute_loss(stub, policy, inputs)
    loss.backward()
    expected = (loss.item(), gradients(policy))
    correction = Correction(method, level, 0.99, 1.01)
    objective = PolicyGradient(algorithm("grpo"), TEMPERATURE, correction=correction)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-9)


def test_rloo_equals_trl(trl):
    policy, batch = tiny_model(seed=1), group_batch()
    now, entropies, inputs = trl_inputs(trl, policy, batch)
    inputs["old_logps"] = inputs["old_per_token_logps"].sum(1)
    stub = trainer_stub(
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, entropies.detach(), None),
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    policy.zero_grad()
    loss = trl.rloo.RLOOTrainer._compute_loss(stub, policy, inputs)
    loss.backward()
    expected = (loss.item(), gradients(policy))
    objective = PolicyGradient(algorithm("rloo"), TEMPERATURE)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-9)
    assert 0 < newest(stub)["clip_ratio/region_mean"] < 1
