"""Numbers that are not finite, where training starts and on its way."""

from __future__ import annotations

import math

import pytest
import torch

from fourstage.data.batch import Batch
from fourstage.training.guards import GuardFailed, NotFinite, documents_do_not_leak
from fourstage.training.metrics import read_rows
from training_support import (
    TinySource,
    same_bits,
    tiny_batch,
    tiny_model,
    trainer,
    weights_of,
)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_with_broken_weights_is_refused_by_name_before_the_first_update(tmp_path, value):
    broken = tiny_model()
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(GuardFailed, match=r"the weights of model\.layers\.1\.mlp\.up_proj\.weight"):
        trainer(tmp_path, broken, guards=[documents_do_not_leak()]).train()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


class NaNs(TinySource):
    """Batches of which some train on a weight that is no number."""

    def __init__(self, *steps: int):
        super().__init__()
        self.steps = steps

    def batch(self, step: int) -> Batch:
        batch = tiny_batch(self.seed, step)
        if step in self.steps:
            batch.streams["loss_weights"][5] = math.nan
        return batch


def test_a_first_batch_that_is_not_finite_is_no_leak_but_a_skipped_step(tmp_path):
    said: list[str] = []
    model = tiny_model()
    trainer(tmp_path, model, NaNs(0), guards=[documents_do_not_leak()], say=said.append).train()
    assert any(
        line.startswith("step 1 was not finite") and "document 0" in line for line in said
    ), said
    (event,) = [row for row in read_rows(tmp_path / "metrics.jsonl") if "event" in row]
    assert (event["step"], event["event"], event["cause"]) == (1, "skip", "not_finite")
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("reaction", ["warn", "skip", "lower_rate", "rollback"])
def test_what_is_not_finite_never_reaches_weights_moments_or_average(tmp_path, reaction):
    model = tiny_model()
    running = trainer(
        tmp_path, model, NaNs(8, 9), on_spike=reaction, ema=0.9, rollback_steps=2, steps=14,
        spike_window=8,
    )  # fmt: skip
    result = running.train()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert all(bool(t.isfinite().all()) for t in running.update.optimiser.state().values())
    events = [row["event"] for row in read_rows(tmp_path / "metrics.jsonl") if "event" in row]
    named = {"warn": "skip", "skip": "skip", "lower_rate": "lower_rate", "rollback": "rollback"}
    assert set(events) == {named[reaction]} and result.steps == 14


def test_a_run_of_nothing_but_nan_ends_with_its_layer_and_its_checkpoints(tmp_path):
    source = NaNs(*range(6, 99))
    with pytest.raises(NotFinite, match=r"5 steps in a row were not finite.*the gradient of"):
        trainer(tmp_path, source=source, checkpoint_every=2, log_every=1).train()
    resumed, straight = tiny_model(), tiny_model()
    for folder, model in ((tmp_path, resumed), (tmp_path / "b", straight)):
        trainer(folder, model, NaNs(6, 7, 8, 9), checkpoint_every=2).train()
    assert same_bits(weights_of(resumed), weights_of(straight))
