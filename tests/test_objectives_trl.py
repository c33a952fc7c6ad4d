"""Losses and gradients equal TRL's own code on identical tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fourstage.objectives.advantages import group_advantages
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.logprobs import token_logprobs_and_entropies
from objectives_support import (
    assert_same_update,
    gradients,
    pair_batch,
    tiny_model,
    update,
)
from trl_support import trainer_stub


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl")
    from trl.trainer import reward_trainer, utils

    return SimpleNamespace(reward=reward_trainer, utils=utils)


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
