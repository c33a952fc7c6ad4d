"""The trainer's own update with these objectives: the same however a step is cut and dealt out."""

from __future__ import annotations

import pytest
import torch

from fourstage.data.batch import Batch
from fourstage.objectives.algorithms import algorithm_of
from fourstage.objectives.correction import TIS
from fourstage.objectives.kto import KTO
from fourstage.objectives.policy_gradient import PolicyGradient
from fourstage.objectives.preference import DirectPreference
from fourstage.objectives.preferences import preference_of
from fourstage.parallel.group import Group
from fourstage.training.update import Update
from objectives_support import group_batch, kto_batch, preference_batch, tiny_model
from training_support import settings


def single(batch: Batch) -> Batch:
    def lowered(tensors: dict) -> dict:
        return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}

    batch.streams, batch.documents = lowered(batch.streams), lowered(batch.documents)
    return batch


def policy():
    return tiny_model("language", 1, torch.float32)


CASES = {
    "gspo": (lambda: PolicyGradient(algorithm_of("gspo"), 0.7, correction=TIS), group_batch),
    "dapo": (lambda: PolicyGradient(algorithm_of("dapo"), 0.7, 0.01), group_batch),
    "rloo": (lambda: PolicyGradient(algorithm_of("rloo"), 0.7), group_batch),
    "dpo": (lambda: DirectPreference(preference_of("dpo")), preference_batch),
    "orpo": (lambda: DirectPreference(preference_of("orpo")), preference_batch),
    "kto": (KTO, lambda: single(kto_batch(8))),
}


@pytest.mark.parametrize("cut", [{"micro_batch_tokens": 20}, {"workers": 2}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_step_of_the_trainer_is_the_same_however_it_is_cut(name, cut, monkeypatch):
    monkeypatch.setattr("fourstage.training.passes.FEWEST_CELLS", 1)
    make, of_step = CASES[name]
    batch, found = single(of_step()), []
    for told in ({}, cut):
        model, objective = policy(), make()
        update = Update(model, objective, settings(**told), torch.device("cpu"), Group())
        found.append((update(batch, 1e-3), model))
    (whole, first), (parts, second) = found
    assert whole.applied and whole.gradient_norm > 1e-4
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5, abs=1e-6)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
    for name, (total, count) in whole.metrics.items():
        assert parts.metrics[name] == pytest.approx((total, count), rel=1e-4, abs=1e-4), name
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
