"""Losses and gradients equal TRL's own code on identical tensors."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from fourstage.objectives.advantages import group_advantages
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.grpo import GRPO
from fourstage.objectives.logprobs import token_logprobs_and_entropies
from objectives_support import (
    assert_same_update,
    gradients,
    group_batch,
    pair_batch,
    tiny_model,
    update,
)


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl")
    from trl.trainer import grpo_trainer, reward_trainer, utils

    return SimpleNamespace(grpo=grpo_trainer, reward=reward_trainer, utils=utils)


def trainer_stub(**attributes) -> SimpleNamespace:
    """What TRL's loss functions read of their trainer, on one process and in evaluation mode."""
    accelerator = SimpleNamespace(
        gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    metrics = defaultdict(lambda: defaultdict(list))
    model = SimpleNamespace(training=False)
    return SimpleNamespace(
        accelerator=accelerator, _metrics=metrics, model=model, _total_train_tokens=0, **attributes
    )


def rectangle(values: list[torch.Tensor]) -> torch.Tensor:
    """Documents' tails as [documents, time], zeros behind them."""
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)


@pytest.mark.parametrize("centring", [None, 0.01])
@pytest.mark.parametrize("with_margins", [False, True])
def test_bradley_terry_equals_trl(trl, centring, with_margins):
    model, batch = tiny_model("scalar"), pair_batch()
    if not with_margins:
        del batch.documents["margins"]

    def scores_of(attention_mask, **_):
        scores = model.scores(model(batch.tokens, batch.layout)[batch.last_cells])
        return SimpleNamespace(logits=torch.cat([scores[::2], scores[1::2]])[:, None])

    inputs = {"attention_mask": torch.ones(1)}
    if with_margins:
        inputs["margin"] = batch.documents["margins"][::2]
    stub = trainer_stub(args=SimpleNamespace(center_rewards_coefficient=centring))
    model.zero_grad()
    loss = trl.reward.RewardTrainer.compute_loss(stub, scores_of, inputs)
    loss.backward()
    expected = (loss.item(), gradients(model))
    assert_same_update(update(BradleyTerry(centring or 0.0), model, [batch], batch), expected, 1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.2, 0.28)])
def test_grpo_equals_trl(trl, beta, low, high):
    policy, batch = tiny_model(seed=1), group_batch()
    sizes = list(batch.lengths)
    mask = batch.streams["loss_weights"] != 0

    def tails(stream: torch.Tensor) -> torch.Tensor:
        parts = zip(stream.split(sizes), mask.split(sizes), strict=True)
        return rectangle([values[trained] for values, trained in parts])

    hidden = policy(batch.tokens, batch.layout)
    logits = rectangle([x[m] for x, m in zip(hidden.split(sizes), mask.split(sizes), strict=True)])
    completion = tails(batch.targets)
    now = trl.utils.selective_log_softmax(policy.logits(logits), completion, temperature=0.7)
    stub = trainer_stub(
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, now.detach(), None),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type="grpo",
        epsilon_low=low,
        epsilon_high=high,
        use_vllm=False,
        _entropy_bonus_enabled=False,
    )
    advantages = tails(batch.streams["advantages"])[:, 0]
    inputs = {
        "prompt_ids": completion[:, :1],
        "prompt_mask": torch.ones_like(completion[:, :1]),
        "completion_ids": completion,
        "completion_mask": tails(mask.double()),
        "advantages": advantages,
        "old_per_token_logps": tails(batch.streams["old_logprobs"]),
        "ref_per_token_logps": tails(batch.streams["ref_logprobs"]),
    }
    policy.zero_grad()
    loss = trl.grpo.GRPOTrainer._compute_loss(stub, policy, inputs)
    loss.backward()
    expected = (loss.item(), gradients(policy))
    objective = GRPO(low, high, kl_coefficient=beta, temperature=0.7)
    assert_same_update(update(objective, policy, [batch], batch), expected, 1e-9)


def test_group_advantages_equal_trl(trl):
    rewards = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = trl.utils.nanstd(rewards.view(-1, 4), dim=1).repeat_interleave(4)
    centred = rewards - rewards.view(-1, 4).mean(1).repeat_interleave(4)
    found = group_advantages(rewards, torch.arange(24) // 4)
    # TRL takes its Bessel correction in single precision.
    torch.testing.assert_close(found, centred / (std + 1e-4), rtol=0, atol=1e-6)


def test_logprobs_and_entropies_equal_trl(trl):
    logits = torch.randn(300, 50, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(300) % 50
    found, entropies = token_logprobs_and_entropies(lambda x: x, logits, targets, 50, 0.7)
    expected = trl.utils.selective_log_softmax(logits, targets, temperature=0.7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    expected = trl.utils.entropy_from_logits(logits / 0.7)
    torch.testing.assert_close(entropies, expected, rtol=0, atol=1e-5)
