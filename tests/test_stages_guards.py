"""Sabotage: each fault that would train the wrong thing is refused, or seen in the numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_texts import english
from fourstage.data.batch import Batch, Example
from fourstage.data.prepared import PreparedData
from fourstage.data.sources import DocumentSource, PairSource
from fourstage.evaluation.responses import Chat
from fourstage.evaluation.success import task_success
from fourstage.files import read_json
from fourstage.model.config import ModelConfig
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.stages import pretrain, rollouts
from fourstage.tasks import Task
from fourstage.tokenizer import Tokenizer
from fourstage.training.guards import GuardFailed
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer
from pipeline_support import go, results, tiny, whole_run

# Bits per byte over the entropy that a minute's model stays within.
_OVER_ENTROPY = 2.0


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the whole run, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def refused(run: Path, stage: str, words: str) -> None:
    """A stage of a run is refused by a guard, and leaves nothing trained."""
    if stage != "rl":
        # The sabotage may lie in what is prepared.
        shutil.rmtree(run / "data" / stage)
    shutil.rmtree(run / stage)
    with pytest.raises(GuardFailed, match=words):
        go(tiny(), run, only=stage)
    for name in ("metrics.jsonl", "checkpoints", "model", "results.json"):
        assert not (run / stage / name).exists(), name
    assert read_json(run / "run.json")["stages"][stage]["status"] == "stopped"


def _pretrained(out: Path) -> tuple[float, float]:
    """Bits per byte and entropy of a base model trained a little longer."""
    quiet = ("pretrain.validate_every=0", "pretrain.sample_every=0", "pretrain.checkpoint_every=0")
    go(tiny("pretrain.steps=60", *quiet), out, only="pretrain")
    metrics = results(out, "pretrain")["metrics"]
    return metrics["validation_bits_per_byte"], metrics["entropy_bits_per_byte"]


def _labels_one_too_far(monkeypatch) -> None:
    real = DocumentSource.batch

    def batch(self, step):
        made = real(self, step)
        made.targets = made.targets.roll(-1)
        return made

    monkeypatch.setattr(DocumentSource, "batch", batch)


def test_labels_one_too_far_are_refused(run, monkeypatch):
    _labels_one_too_far(monkeypatch)
    refused(run, "pretrain", "the next token is")


def test_labels_one_too_far_would_be_seen_far_above_the_entropy(tmp_path, monkeypatch):
    bits, entropy = _pretrained(tmp_path / "right")
    assert entropy < bits < entropy + _OVER_ENTROPY
    _labels_one_too_far(monkeypatch)
    monkeypatch.setattr(pretrain, "trains_only", lambda expected: lambda *batch: None)
    wrong, _ = _pretrained(tmp_path / "wrong")
    assert wrong > entropy + 1.5 * _OVER_ENTROPY


def test_a_flipped_preference_is_seen_in_the_pair_accuracy(run, tmp_path, monkeypatch):
    lines = english(40, seed=4).replace("\n\n", " ").split(". ")
    pairs = [{"prompt": f"Say {i}.", "chosen": line, "rejected": "No, no!"}
             for i, line in enumerate(lines)]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    longer = ("reward.steps=12", "reward.learning_rate=3e-3")
    recipe = tiny(f"data.preferences={file}", *longer)
    go(recipe, run, only="reward")
    assert results(run, "reward")["metrics"]["pair_accuracy"] > 0.9
    real = PairSource.batch

    def flipped(self, step):
        made = real(self, step)
        return made.select([index ^ 1 for index in range(len(made.lengths))])

    monkeypatch.setattr(PairSource, "batch", flipped)
    shutil.rmtree(run / "reward")
    go(recipe, run, only="reward")
    assert results(run, "reward")["metrics"]["pair_accuracy"] < 0.1


class _Memorised:
    """A few demonstrations over and over."""

    def __init__(self, tokenizer: Tokenizer, shown: list[tuple[Task, str]]):
        self.examples = [
            tokenizer.chat_example(
                [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": answer}]
            )
            for task, answer in shown
        ]

    def batch(self, step: int) -> Batch:
        return Batch.language(self.examples)

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        pass


def _success(run: Path, folder: Path) -> float:
    """Of a model that knows four demonstrations by heart, on those."""
    prepared = PreparedData.open(run)
    tokenizer = prepared.tokenizer()
    by_kind = {task.kind: (task, answer) for task, answer in prepared.demonstrations()}
    shown = sorted(by_kind.values(), key=lambda each: len(each[1]))[:4]
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=48,
        layers=2,
        heads=2,
        kv_heads=2,
        mlp_width=96,
        context=192,
    )
    model = Transformer(config).initialise(0)
    settings = TrainSettings(steps=120, learning_rate=1e-2, log_every=120, weight_decay=0.0)
    source = _Memorised(tokenizer, shown)
    Trainer(model, NextToken(), source, settings, folder, say=lambda line: None).train()
    chat = Chat(model, tokenizer, max_new_tokens=64)
    return task_success(chat, [task for task, _ in shown]).metrics["task_success"]


def _without_the_end(monkeypatch) -> None:
    """Leaves the end of a turn out of the loss."""
    real = Tokenizer.chat_example

    def chat_example(self, messages, trained=()):
        example = real(self, messages, trained)
        mask = example.loss_mask & (example.tokens != self.end_of_turn)
        return dataclasses.replace(example, loss_mask=mask)

    monkeypatch.setattr(Tokenizer, "chat_example", chat_example)


def test_a_model_that_does_not_stop_does_no_task(finished, tmp_path, monkeypatch):
    assert _success(finished, tmp_path / "right") == 1
    with monkeypatch.context() as patch:
        _without_the_end(patch)
        assert _success(finished, tmp_path / "untaught") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "stop_ids", property(lambda self: (self.pad,)))
        assert _success(finished, tmp_path / "unheard") == 0


def test_an_untaught_end_of_turn_is_refused(run, monkeypatch):
    _without_the_end(monkeypatch)
    refused(run, "sft", "it is not trained but should be trained")


def test_an_unmasked_prompt_is_refused_in_fine_tuning(run, monkeypatch):
    real = Tokenizer.chat_example

    def chat_example(self, messages, trained=()):
        example = real(self, messages, trained)
        return dataclasses.replace(example, loss_mask=np.ones(len(example.tokens), bool))

    monkeypatch.setattr(Tokenizer, "chat_example", chat_example)
    refused(run, "sft", "it is trained but should be not trained")


def test_a_row_that_does_not_end_in_the_reward_token_is_refused(run, monkeypatch):
    real = Tokenizer.reward_example

    def reward_example(self, messages):
        example = real(self, messages)
        return Example(example.tokens[:-1], example.loss_mask[:-1])

    monkeypatch.setattr(Tokenizer, "reward_example", reward_example)
    refused(run, "reward", "a row does not end in")


class _Leaking(Layout):
    """Attention sees all cells as one document; everything else is as it should be."""

    def __init__(self, lengths, device="cpu"):
        super().__init__(lengths, device)
        whole = Layout([self.cells], device)
        self.starts, self._rectangles = whole.starts, whole._rectangles


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward"])
def test_attention_across_documents_is_refused(run, monkeypatch, stage):
    monkeypatch.setattr("fourstage.data.batch.Layout", _Leaking)
    refused(run, stage, "something crosses the boundary between documents")


def test_an_unmasked_prompt_is_refused_in_reinforcement_learning(run, monkeypatch):
    real = rollouts.RolloutSource.batch

    def batch(self, step):
        made = real(self, step)
        made.streams["loss_weights"][0] = 1
        return made

    monkeypatch.setattr(rollouts.RolloutSource, "batch", batch)
    refused(run, "rl", "the trained tokens are not those of the responses")


def test_a_token_of_a_response_left_out_is_refused_in_reinforcement_learning(run, monkeypatch):
    real = rollouts.RolloutSource.batch

    def batch(self, step):
        made = real(self, step)
        made.streams["loss_weights"][made.last_cells[0]] = 0
        return made

    monkeypatch.setattr(rollouts.RolloutSource, "batch", batch)
    refused(run, "rl", "the trained tokens are not those of the responses")


def test_rollouts_of_another_model_are_refused(run, monkeypatch):
    real = rollouts.trained_logprobs

    def another(model, batch, temperature=1.0):
        return real(model, batch, temperature) + 0.01 * torch.arange(batch.cells)

    monkeypatch.setattr(rollouts, "trained_logprobs", another)
    refused(run, "rl", "a probability ratio is")
