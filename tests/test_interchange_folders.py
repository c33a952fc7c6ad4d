"""What model folders promise: transformers opens ours, and we open theirs."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch

from fourstage.errors import InputError
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.interchange import (
    is_reward_model,
    load_config,
    load_model,
    save_model,
    stop_ids,
)
from fourstage.model.layout import Layout
from tiny_models import Letters, logits_of, tiny_model

TOKENS = [5, 9, 17, 3, 58, 22, 22, 41, 7]
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"qk_norm": False},
    "qwen3": {"qk_norm": True},
    "tied": {"qk_norm": True, "tie_embeddings": True},
    "relu2": {"qk_norm": False, "activation": "relu2"},
    "relu2-qk-norm-tied": {"qk_norm": True, "activation": "relu2", "tie_embeddings": True},
    "wide-heads": {"qk_norm": False, "head_width": 16, "kv_heads": 1, "rope_theta": 500000.0},
    "all-heads": {"qk_norm": True, "kv_heads": 4, "norm_eps": 1e-5},
}


@pytest.fixture(scope="session")
def transformers():
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers


def saved(folder, **changes):
    model = tiny_model(**changes)
    save_model(folder, model, Letters(), card="# A model")
    return model


def their_logits(model, tokens=TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_gives_the_same_logits_and_greedy_texts(shape, tmp_path, transformers):
    ours = saved(tmp_path / "model", **SHAPES[shape])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    family = "Qwen3" if SHAPES[shape]["qk_norm"] else "Llama"
    assert type(theirs).__name__ == f"{family}ForCausalLM"
    assert (their_logits(theirs) - logits_of(ours, TOKENS)).abs().max() < 1e-4
    text = theirs.generate(torch.tensor([TOKENS]), max_new_tokens=20, do_sample=False)
    sampling = Sampling(temperature=0, max_new_tokens=20, stop_ids=(1, 2))
    mine = Engine(ours).generate([TOKENS], sampling)[0]
    assert text[0, len(TOKENS) :].tolist() == mine.tokens
    assert theirs.generation_config.eos_token_id == [1, 2]
    assert theirs.generation_config.pad_token_id == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_folder_loads_here_with_the_same_bits(shape, tmp_path):
    ours = saved(tmp_path / "model", **SHAPES[shape])
    again = load_model(tmp_path / "model")
    assert again.config == ours.config == load_config(tmp_path / "model")
    assert again.state_dict().keys() == ours.state_dict().keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    assert all(weight.requires_grad for weight in again.parameters())
    assert stop_ids(tmp_path / "model") == (1, 2)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_reward_model_opens_as_a_classifier_with_the_same_scores(shape, tmp_path, transformers):
    ours = tiny_model("scalar", **SHAPES[shape])
    ours.reward_mean, ours.reward_std = 0.25, 2.0
    save_model(tmp_path / "model", ours, Letters(), card="# A reward model")
    opener = transformers.AutoModelForSequenceClassification
    theirs = opener.from_pretrained(tmp_path / "model").eval()
    assert theirs.config.num_labels == 1 and theirs.config.pad_token_id == 0
    assert theirs.config.reward_mean == 0.25 and theirs.config.reward_std == 2.0
    short = TOKENS[:4]
    rows = torch.tensor([TOKENS, short + [0] * (len(TOKENS) - len(short))])
    with torch.no_grad():
        hidden = ours(torch.tensor(TOKENS + short), Layout([len(TOKENS), len(short)]))
        mine = ours.scores(hidden)[[len(TOKENS) - 1, -1]]
        scores = theirs(rows, attention_mask=(rows != 0).long()).logits[:, 0]
    assert (scores - mine).abs().max() < 1e-4
    again = load_model(tmp_path / "model")
    assert again.head == "scalar" and (again.reward_mean, again.reward_std) == (0.25, 2.0)
    assert is_reward_model(tmp_path / "model")
    assert not (tmp_path / "model" / "generation_config.json").exists()


def theirs(transformers, family: str, kind: str = "ForCausalLM", **changes):
    """A random model of transformers, small, every norm weight its own."""
    shape = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{family}Config")(**(shape | changes))
    torch.manual_seed(0)
    model = getattr(transformers, family + kind)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1234.0}}),
        ("Qwen3", {"head_dim": 8}),
        ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("Qwen3", {}),
    ],
)
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_folder_of_transformers_loads_here_with_the_same_logits(
    family, changes, shard, tmp_path, transformers
):
    model = theirs(transformers, family, **changes)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard == "20KB"
    ours = load_model(tmp_path)
    assert (their_logits(model) - logits_of(ours, TOKENS)).abs().max() < 1e-4
    assert stop_ids(tmp_path) == (3,)


def test_the_older_form_of_a_config_is_read_too(tmp_path, transformers):
    model = theirs(
        transformers, "Llama", rope_parameters={"rope_type": "default", "rope_theta": 777.0}
    )
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    for newer in ("rope_parameters", "dtype", "head_dim", "tie_word_embeddings"):
        raw.pop(newer, None)
    raw |= {"rope_theta": 777.0, "rope_scaling": None, "torch_dtype": "float32"}
    path.write_text(json.dumps(raw))
    assert load_config(tmp_path).rope_theta == 777.0
    assert (their_logits(model) - logits_of(load_model(tmp_path), TOKENS)).abs().max() < 1e-4


def test_half_precision_weights_are_read_as_float32(tmp_path, transformers):
    theirs(transformers, "Llama").to(torch.bfloat16).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_model(tmp_path)
    assert {weight.dtype for weight in ours.parameters()} == {torch.float32}
    assert (their_logits(model) - logits_of(ours, TOKENS)).abs().max() < 1e-4


def test_a_classifier_of_transformers_with_one_label_loads_as_a_reward_model(
    tmp_path, transformers
):
    model = theirs(transformers, "Qwen3", "ForSequenceClassification", num_labels=1, head_dim=8)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    with torch.no_grad():
        score = ours.scores(ours(torch.tensor(TOKENS), Layout([len(TOKENS)])))[-1]
    assert abs(float(score - their_logits(model)[0])) < 1e-4
    assert (ours.reward_mean, ours.reward_std) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("family", "kind", "changes", "field"),
    [
        ("Llama", "ForCausalLM", {"hidden_act": "tanh"}, "hidden_act"),
        ("Llama", "ForCausalLM", {"hidden_act": "relu"}, "hidden_act"),
        ("Llama", "ForSequenceClassification", {"num_labels": 3}, "num_labels"),
        ("Llama", "ForTokenClassification", {}, "architectures"),
        ("Qwen2Moe", "ForCausalLM", {}, "model_type"),
    ],
)
def test_what_this_model_lacks_is_refused_by_name(
    family, kind, changes, field, tmp_path, transformers
):
    theirs(transformers, family, kind, **changes).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=field):
        load_model(tmp_path)


def _cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _broken_config(folder):
    (folder / "config.json").write_text("{")


def _no_config(folder):
    (folder / "config.json").unlink()


def _another_size(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"vocab_size": 61}))


def _a_word_for_a_number(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"hidden_size": "wide"}))


def _missing_layer(folder):
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (folder / "config.json").write_text(json.dumps(raw))


def _shard_outside(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut_short, "cannot be read"),
        (_pickled, "pickled"),
        (_no_weights, "no weights"),
        (_broken_config, "not JSON"),
        (_no_config, "config.json is missing"),
        (_another_size, "shape"),
        (_a_word_for_a_number, "hidden_size='wide'"),
        (_missing_layer, "lack model.layers.2"),
        (_shard_outside, "outside its folder"),
    ],
)
def test_a_damaged_folder_is_refused_with_what_is_wrong(damage, words, tmp_path):
    saved(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "model")


def test_the_card_opens_with_front_matter(tmp_path):
    saved(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "# A model" in card
