"""Adapters as PEFT's folders: ours opened by PEFT, PEFT's opened here."""

import dataclasses
import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fourstage.adapters.adapting import adapt, freeze, merge
from fourstage.errors import InputError
from fourstage.interchange import is_reward_model, load_config, load_model, save_model
from fourstage.interchange.peft import lacks_the_layers, save_adapter
from fourstage.model.layout import Layout
from fourstage.pipeline.lineage import model_hash
from fourstage.recipe.adapter import Adapter
from test_adapters import settled
from tiny_models import Letters, logits_of, tiny_family, tiny_model

TOKENS = [5, 3, 9, 1, 7, 2, 30, 8]


def exported(folder, model, settings, prepare=lambda model: None):
    """The model saved, then adapted, its adapter saved; the adapted model, merged."""
    save_model(folder / "base", model, Letters(), card="base")
    prepare(model)
    adapt(model, settings, 0)
    settled(model)
    save_adapter(folder / "adapter", model, settings, Letters(), base="../base", card="an adapter")
    merge(model)
    return model


def fused(family):
    """A model saved as a family that holds several of our layers in one."""
    model = tiny_family(family, kv_heads=4)
    model.config = dataclasses.replace(model.config, family=family)
    return model


def theirs(folder, kind=AutoModelForCausalLM, **options):
    base = kind.from_pretrained(folder / "base", **options)
    model = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize("settings", [
    Adapter(rank=4), Adapter(rank=4, kind="rslora", alpha=3), Adapter(rank=4, kind="dora"),
    Adapter(rank=3, alpha=4.5, targets=["q_proj", "down_proj"]),
])  # fmt: skip
def test_peft_opens_an_adapter_with_the_same_logits(tmp_path, settings):
    model = exported(tmp_path, tiny_model(), settings)
    torch.testing.assert_close(theirs(tmp_path), logits_of(model, TOKENS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "gemma2", "mixtral", "olmo2"])
def test_peft_finds_the_layers_of_other_architectures(tmp_path, family):
    model = exported(tmp_path, tiny_family(family), Adapter(rank=4, kind="dora"))
    torch.testing.assert_close(theirs(tmp_path), logits_of(model, TOKENS), atol=1e-4, rtol=1e-4)


def test_a_squared_relu_is_adapted_in_its_gate_as_well(tmp_path):
    model = exported(tmp_path, tiny_model(activation="relu2"), Adapter(rank=4))
    torch.testing.assert_close(theirs(tmp_path), logits_of(model, TOKENS), atol=1e-4, rtol=1e-4)


def test_layers_without_an_adapter_are_left_alone_by_peft(tmp_path):
    model = exported(
        tmp_path, tiny_model(), Adapter(rank=4), lambda m: freeze([m], ["model.layers.0.*"])
    )
    torch.testing.assert_close(theirs(tmp_path), logits_of(model, TOKENS), atol=1e-4, rtol=1e-4)


def test_a_scalar_head_goes_with_the_adapter_of_a_language_model(tmp_path):
    chat = tiny_model()
    save_model(tmp_path / "base", chat, Letters(), card="base")
    model = chat.with_scalar_head(0)
    settings = Adapter(rank=4)
    adapt(model, settings, 0)
    settled(model)
    save_adapter(tmp_path / "adapter", model, settings, Letters(), base="../base", card="")
    merge(model)
    with torch.no_grad():
        scores = model.scores(model(torch.tensor(TOKENS), Layout([len(TOKENS)])))
    scored = theirs(tmp_path, AutoModelForSequenceClassification, num_labels=1)
    torch.testing.assert_close(scored, scores[-1:], atol=1e-4, rtol=1e-4)
    assert is_reward_model(tmp_path / "adapter")
    again = load_model(tmp_path / "adapter")
    with torch.no_grad():
        found = again.scores(again(torch.tensor(TOKENS), Layout([len(TOKENS)])))
    torch.testing.assert_close(found, scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "neox"])
def test_fused_and_transposed_layers_have_no_adapter_of_their_own(family):
    model = fused(family)
    adapt(model, Adapter(rank=2), 0)
    assert "the model's architecture holds" in lacks_the_layers(model)


def made_by_peft(folder, model, **settings):
    """A folder that PEFT saved on a model of ours, and the logits of the two together."""
    save_model(folder / "base", model, Letters(), card="base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **settings)
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(folder / "adapter")
    Letters().save(folder / "adapter")
    with torch.no_grad():
        return adapted(torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize("settings", [
    {"target_modules": "all-linear"}, {"target_modules": ["q_proj"], "use_rslora": True},
    {"target_modules": ["v_proj", "up_proj"], "use_dora": True},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}},
])  # fmt: skip
def test_an_adapter_of_peft_is_opened_merged(tmp_path, settings):
    logits = made_by_peft(tmp_path, tiny_model(tie_embeddings=False), **settings)
    model = load_model(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(model, TOKENS), logits, atol=1e-4, rtol=1e-4)
    assert load_config(tmp_path / "adapter") == load_config(tmp_path / "base")
    assert not is_reward_model(tmp_path / "adapter")


@pytest.mark.parametrize(("family", "targets"), [
    ("gpt2", ["c_attn", "c_proj"]), ("phi3", ["qkv_proj"]), ("neox", ["query_key_value"])
])  # fmt: skip
def test_fused_and_transposed_layers_are_merged_under_their_own_names(tmp_path, family, targets):
    settings = {"target_modules": targets, "fan_in_fan_out": family == "gpt2"}
    logits = made_by_peft(tmp_path, fused(family), **settings)
    model = load_model(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(model, TOKENS), logits, atol=1e-4, rtol=1e-4)


def changed(folder, **fields):
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(("fields", "words"), [
    ({"peft_type": "IA3"}, "describes no LoRA adapter"),
    ({"bias": "all"}, "bias='all' is not supported"),
    ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is set and not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base"),
    ({"base_model_name_or_path": "some/model"}, "names the base 'some/model', which is no model"),
])  # fmt: skip
def test_an_adapter_that_cannot_be_merged_is_refused_in_words(tmp_path, fields, words):
    exported(tmp_path, tiny_model(), Adapter(rank=2))
    changed(tmp_path, **fields)
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "adapter")


def test_an_adapter_of_another_model_is_refused(tmp_path):
    exported(tmp_path, tiny_model(), Adapter(rank=2))
    save_model(tmp_path / "other", tiny_model(width=64), Letters(), card="other")
    changed(tmp_path, base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(InputError, match="does not fit a weight of"):
        load_model(tmp_path / "adapter")


def test_an_adapter_without_a_tokenizer_is_refused(tmp_path):
    exported(tmp_path, tiny_model(), Adapter(rank=2))
    (tmp_path / "adapter" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer\.json: copy the base's"):
        load_model(tmp_path / "adapter")


def test_the_hash_of_an_adapter_is_also_that_of_its_base(tmp_path):
    exported(tmp_path, tiny_model(), Adapter(rank=2))
    before = model_hash(tmp_path / "adapter")
    save_model(tmp_path / "base", tiny_model(seed=3), Letters(), card="base")
    assert model_hash(tmp_path / "adapter") != before


def test_a_row_of_zeros_stays_one_where_each_row_has_a_length(tmp_path):
    model, settings = tiny_model(), Adapter(rank=2, kind="dora")
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    save_model(tmp_path / "base", model, Letters(), card="base")
    adapt(model, settings, 0)
    save_adapter(tmp_path / "adapter", model, settings, Letters(), base="../base", card="zeros")
    opened = load_model(tmp_path / "adapter")
    assert all(bool(p.isfinite().all()) for p in opened.parameters())


def test_the_alpha_of_the_recipe_is_written_as_it_is(tmp_path):
    exported(tmp_path, tiny_model(), Adapter(rank=19, kind="rslora", alpha=12))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 12
