"""What `config.json` promises: every option that is written is read back, others are refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.errors import InputError
from fourstage.interchange.configs import exportable, from_huggingface, to_huggingface
from fourstage.interchange.families import FAMILIES
from fourstage.model.config import ModelConfig, RopeScaling
from fourstage.model.families import FAMILIES as OPTIONS
from fourstage.model.families import sized

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "width": 32,
    "layers": 3,
    "heads": 4,
    "kv_heads": 4,
    "mlp_width": 128,
    "context": 64,
}
GEMMA: dict[str, Any] = {
    "activation": "geglu",
    "norm_offset": 1.0,
    "norm_placement": "around",
    "embedding_multiplier": 32**0.5,
    "windows": (8, 0, 8),
    "tie_embeddings": True,
}
BIASES = {"norm": "layer", "qk_norm": False, "qkv_bias": True, "output_bias": True}
BIASES |= {"mlp_bias": True}
PLAIN: dict[str, Any] = {"qk_norm": False}
LONGROPE = RopeScaling(
    "longrope", 4.0, 16, short_factors=(1.0,) * 4, long_factors=(1.0, 2.0, 3.0, 4.0)
)
# Options that only the family of the name has.
OWN: dict[str, dict[str, Any]] = {
    "llama": PLAIN | {"mlp_bias": True},
    "qwen2": PLAIN | {"qkv_bias": True},
    "qwen3": {"windows": (0, 8, 8)},
    "mistral": PLAIN | {"windows": (8, 8, 8)},
    "gemma2": GEMMA | {"qk_norm": False, "attention_softcap": 50.0, "logit_softcap": 30.0},
    "gemma3": GEMMA | {"local_rope_theta": 100.0},
    "olmo2": {"qk_norm_whole": True, "norm_placement": "after"},
    "phi3": PLAIN | {"rope_fraction": 0.5},
    "mixtral": PLAIN | {"experts": 4},
    "qwen3_moe": {"experts": 4, "normalise_experts": False},
    "gpt2": BIASES | {"positions": "learned", "activation": "gelu_tanh"},
    "neox": BIASES | {"activation": "gelu", "rope_fraction": 0.25, "parallel_residual": True},
    "bloom": BIASES | {"positions": "alibi", "activation": "gelu_tanh", "embedding_norm": True},
}
SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "dynamic": RopeScaling("dynamic", 4.0, 64),
    "yarn": RopeScaling("yarn", 4.0, 16, beta_fast=16.0, attention_factor=1.5),
    "llama3": RopeScaling("llama3", 8.0, 16, 1.0, 4.0),
    "longrope": LONGROPE,
}


def config(**changes) -> ModelConfig:
    return ModelConfig(**(SIZES | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_chosen_by_its_own_options_and_read_back(family):
    made = config(**OWN[family])
    assert exportable(made) == family
    for head in ("language", "scalar"):
        raw = json.loads(json.dumps(to_huggingface(made, head)))
        assert raw["model_type"] == FAMILIES[family].model_type
        assert from_huggingface(raw, "config.json") == (made, head)


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("form", ["both", "older", "newer"])
def test_scaled_positions_are_read_in_the_form_of_either_version(kind, form):
    made = config(**PLAIN, rope_theta=777.0, rope_scaling=SCALINGS[kind])
    raw = to_huggingface(made, "language")
    older, newer = ("rope_theta", "rope_scaling", "torch_dtype"), ("rope_parameters", "dtype")
    for name in {"both": (), "older": newer, "newer": older}[form]:
        del raw[name]
    assert from_huggingface(raw, "config.json")[0] == made


@pytest.mark.parametrize("family", ["phi3", "neox", "gemma3"])
@pytest.mark.parametrize("drop", [("rope_parameters",), ("rope_theta", "rotary_emb_base")])
def test_families_with_names_of_their_own_for_positions_read_both_forms(family, drop):
    made = config(**OWN[family], rope_theta=777.0, family=family)
    raw = to_huggingface(made, "language")
    for name in drop:
        raw.pop(name, None)
    assert dataclasses.replace(from_huggingface(raw, "x")[0], family=family) == made


def test_a_model_is_saved_as_what_it_came_from_where_several_fit():
    raw = to_huggingface(config(**PLAIN), "language")
    phi = {**raw, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    phi["original_max_position_embeddings"] = 64
    read, _ = from_huggingface(phi, "x")
    assert read.family == "phi3" and to_huggingface(read, "language")["model_type"] == "phi3"
    # With an option that Phi-3 lacks it is again what fits.
    assert exportable(dataclasses.replace(read, mlp_bias=True)) == "llama"


VALUES: dict[str, list[Any]] = {
    "kv_heads": [1, 2, 4],
    "head_width": [8, 16],
    "mlp_width": [48, 128],
    "activation": ["swiglu", "geglu", "relu2", "gelu", "gelu_tanh"],
    "qk_norm": [True, False],
    "qk_norm_whole": [True, False],
    "tie_embeddings": [True, False],
    "positions": ["rotary", "learned", "alibi"],
    "rope_fraction": [0.25, 0.5, 1.0],
    "rope_theta": [100.0, 1e4, 1e6],
    "rope_scaling": [None, *SCALINGS.values()],
    "local_rope_theta": [0.0, 100.0],
    "windows": [(), (8, 8, 8), (0, 0, 8), (8, 0, 8), (0, 0, 0)],
    "norm": ["rms", "layer"],
    "norm_offset": [0.0, 1.0],
    "norm_placement": ["before", "after", "around"],
    "norm_eps": [1e-6, 1e-5],
    "parallel_residual": [True, False],
    "embedding_norm": [True, False],
    "attention_scale": [0.0, 1.0, 0.1, 0.0123],
    "attention_softcap": [0.0, 50.0],
    "logit_softcap": [0.0, 30.0],
    "qkv_bias": [True, False],
    "output_bias": [True, False],
    "mlp_bias": [True, False],
    "embedding_multiplier": [1.0, 32**0.5],
    "logit_multiplier": [1.0, 0.5],
    "experts": [0, 4],
    "experts_per_token": [1, 2],
    "normalise_experts": [True, False],
    "family": ["", *FAMILIES],
}
changes_of_options = st.lists(
    st.sampled_from([(name, value) for name, values in VALUES.items() for value in values]),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(changes=changes_of_options, base=st.sampled_from(list(OWN)))
def test_a_config_is_written_so_that_it_is_read_back_or_refused_by_an_option(changes, base):
    try:
        made = config(**(OWN[base] | dict(changes)))
    except InputError:
        return
    try:
        raw = to_huggingface(made, "language")
    except InputError as refusal:
        fields = {field.name for field in dataclasses.fields(ModelConfig)}
        for fault in refusal.faults:
            assert fault.split("=")[0].removeprefix("model.") in fields - {"family"}
        return
    read, _ = from_huggingface(json.loads(json.dumps(raw)), "config.json")
    silent = {
        *("windows", "local_rope_theta" if not any(made.windows) else ""),
        *(name for name in VALUES if "rope" in name and made.positions != "rotary"),
        *(name for name in VALUES if "expert" in name and not made.experts),
        "qk_norm_whole" if not made.qk_norm else "",
        "norm_offset" if made.norm == "layer" else "",
        "family",
    }
    for field in dataclasses.fields(ModelConfig):
        if field.name not in silent:
            assert getattr(read, field.name) == getattr(made, field.name), field.name
    assert [read.window(i) for i in range(3)] == [made.window(i) for i in range(3)]
    assert exportable(read) == exportable(made)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_offset": 0.5}, "model.norm_offset=0.5 cannot be saved.*with 0.0"),
        ({"norm": "layer"}, "model.norm='layer' cannot be saved"),
        ({"logit_multiplier": 0.5}, "model.logit_multiplier"),
        (OWN["gpt2"] | {"head_width": 16}, "model.head_width=16"),
        (OWN["gemma2"] | {"attention_scale": 0.1234}, "model.attention_scale=0.1234"),
    ],
)
def test_options_that_no_architecture_has_are_refused_before_training(changes, words):
    with pytest.raises(InputError, match=words):
        exportable(config(**changes))


@pytest.mark.parametrize(
    ("family", "changes", "field"),
    [
        ("llama", {"rope_scaling": {"type": "random", "factor": 2.0}}, "rope_scaling asks for"),
        ("llama", {"rope_scaling": {"type": "yarn"}}, "factor=None: write a number"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "truncate",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"hidden_size": "wide"}, "hidden_size='wide'"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ("llama", {"layer_types": ["sliding_attention"]}, "layer_types"),
        ("qwen3", {"layer_types": ["linear_attention"] * 32}, "'linear_attention'"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "linear"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ("phi3", {"rope_scaling": {"type": "su", "long_factor": 2}}, "short_factor=None"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh'"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "architectures"),
    ],
)
def test_what_a_config_asks_for_and_the_model_lacks_is_refused_by_its_field(family, changes, field):
    raw = {"model_type": FAMILIES[family].model_type, **changes}
    with pytest.raises(InputError, match=f"config.json: .*{field}"):
        from_huggingface(raw, "config.json")


def test_an_unknown_model_type_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=r"model_type='t5'.*'llama'.*'bloom'"):
        from_huggingface({"model_type": "t5"}, "config.json")


# What the hub says of some models, shortened to what is not a default; parameters as published.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": ({"model_type": "gpt2", "n_embd": 768, "n_ctx": 1024, "resid_pdrop": 0.1}, 124439808),
    "pythia-70m": (
        {
            "model_type": "gpt_neox",
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "num_hidden_layers": 6,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "vocab_size": 50304,
        },
        70426624,
    ),
    "bloom-560m": (
        {"model_type": "bloom", "n_embed": 1024, "n_layer": 24, "num_attention_heads": 16},
        559214592,
    ),
    "mixtral-8x7b": ({"model_type": "mixtral", "rope_theta": 1e6}, 46702792704),
    "gemma-2-2b": ({"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh"}, 2614341888),
    "phi-3-mini": ({"model_type": "phi3", "rope_scaling": None}, 3821079552),
    "qwen3-30b-a3b": (
        {
            "model_type": "qwen3_moe",
            "num_hidden_layers": 48,
            "head_dim": 128,
            "norm_topk_prob": True,
        },
        30532122624,
    ),
    "olmo-2-7b": ({"model_type": "olmo2", "vocab_size": 100352}, 7298617344),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_parameters_as_published(name):
    raw, count = PUBLISHED[name]
    assert from_huggingface(raw, "config.json")[0].parameters() == count


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_named_in_a_recipe_is_what_the_model_is_saved_as(family):
    options = sized(OPTIONS[family], SIZES["layers"])
    assert exportable(config(**options, family=family)) == family


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), family=st.sampled_from(list(FAMILIES)))
def test_a_field_of_another_kind_is_a_fault_of_the_input(data, family):
    scaling = {"windows": (8, 8, 8), "rope_scaling": SCALINGS["yarn"]}
    made = config(**OWN[family] | (scaling if family == "qwen3" else {}))
    raw = to_huggingface(made, data.draw(st.sampled_from(["language", "scalar"])))
    place = raw
    while True:
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or data.draw(st.booleans()):
            break
        place = place[name] or raw
    place[name] = data.draw(anything)
    try:
        from_huggingface(raw, "config.json")
    except InputError as fault:
        assert all(line.startswith("config.json: ") for line in fault.faults)
