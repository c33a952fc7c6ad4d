"""What a path given to chat, generate and explore means."""

from __future__ import annotations

import json

import pytest
import torch

from fourstage.errors import InputError
from fourstage.interchange import resolve_model, with_vocabulary
from tiny_models import logits_of, tiny_model


def model_folder(path, kind="LlamaForCausalLM"):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": [kind]}))
    return path


def test_a_run_means_its_rl_model_else_its_sft_model(tmp_path):
    run = tmp_path / "run"
    model_folder(run / "pretrain" / "model")
    sft = model_folder(run / "sft" / "model")
    model_folder(run / "reward" / "model", "LlamaForSequenceClassification")
    assert resolve_model(run) == sft
    rl = model_folder(run / "rl" / "model")
    assert resolve_model(run) == rl


def test_a_stage_and_a_model_folder_mean_themselves(tmp_path):
    model = model_folder(tmp_path / "run" / "pretrain" / "model")
    assert resolve_model(tmp_path / "run" / "pretrain") == resolve_model(model) == model


def test_a_reward_model_is_refused_where_text_is_asked_for(tmp_path):
    model = model_folder(tmp_path / "reward" / "model", "Qwen3ForSequenceClassification")
    for path in (model, tmp_path / "reward"):
        with pytest.raises(InputError, match="reward model"):
            resolve_model(path)
    assert resolve_model(tmp_path / "reward", writes=False) == model


def test_a_path_without_a_model_is_answered_with_what_to_write(tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "notes").write_text("")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    model_folder(tmp_path / "early" / "pretrain" / "model")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("")
    for name, words in [
        ("quikstart", "did you mean 'quickstart'"),
        ("quickstart", "is empty"),
        ("notes", "is a file"),
        ("texts", "config.json is missing"),
        ("early", "pretrain/model"),
        ("begun", "without a finished model"),
    ]:
        with pytest.raises(InputError, match=words):
            resolve_model(tmp_path / name)


@pytest.mark.parametrize("tied", [True, False])
def test_more_vocabulary_leaves_the_old_logits_as_they_were(tied):
    model = tiny_model(tie_embeddings=tied)
    larger = with_vocabulary(model, 67)
    assert larger.config.vocab_size == 67 and with_vocabulary(model, 60) is model
    old, new = logits_of(model, [1, 2, 3]), logits_of(larger, [1, 2, 3])
    assert torch.allclose(new[:, :60], old, atol=1e-6)
    assert new[:, 60:].max() < old.max()
