"""`config.json` of Hugging Face Llama and Qwen3, read and written.

The model here is a Llama; with norms on queries and keys it is a Qwen3. What such a config may ask
for and this model does not do is refused by the name of its field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fourstage.errors import InputError
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Head

_FAMILIES = {"llama": "Llama", "qwen3": "Qwen3"}

# What transformers takes where a config leaves a field out; it leaves out its own defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 2048,
    },
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    },
}
_SHARED_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def to_huggingface(config: ModelConfig, head: Head) -> dict[str, Any]:
    """The `config.json` of a model, without token ids."""
    family = "qwen3" if config.qk_norm else "llama"
    kind = "ForCausalLM" if head == "language" else "ForSequenceClassification"
    fields: dict[str, Any] = {
        "architectures": [_FAMILIES[family] + kind],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        # relu(gate x) * up x with gate = up is relu(up x)^2.
        "hidden_act": "silu" if config.activation == "swiglu" else "relu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        # transformers 5 reads the second of each pair, older ones the first.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "torch_dtype": "float32",
        "dtype": "float32",
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    if family == "llama":
        fields["mlp_bias"] = False
    else:
        fields |= {"use_sliding_window": False, "sliding_window": None}
        fields["layer_types"] = ["full_attention"] * config.layers
    if head == "scalar":
        fields |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return fields


def from_huggingface(raw: Mapping[str, Any], where: str) -> tuple[ModelConfig, Head]:
    """The model and head that a `config.json` describes; `where` names it in errors.

    A `hidden_act` of `relu` is read as ReLU^2: whether gate = up is for the weights to show.

    Raises:
        InputError: another architecture, or a feature that this model lacks.
    """
    family = raw.get("model_type")
    if family not in _FAMILIES:
        raise InputError(
            f"{where}: model_type={family!r} is not supported: use a folder of model_type "
            "'llama' or 'qwen3'"
        )
    head = _head(raw, family, where)
    faults = _faults(raw)
    if faults:
        raise InputError(*(f"{where}: {fault}" for fault in faults))
    fields = {**_SHARED_DEFAULTS, **_DEFAULTS[family], **raw}
    heads = _whole(fields, "num_attention_heads", where)
    kv_heads = fields["num_key_value_heads"]
    try:
        config = ModelConfig(
            vocab_size=_whole(fields, "vocab_size", where),
            width=_whole(fields, "hidden_size", where),
            layers=_whole(fields, "num_hidden_layers", where),
            heads=heads,
            kv_heads=heads if kv_heads is None else _whole(fields, "num_key_value_heads", where),
            mlp_width=_whole(fields, "intermediate_size", where),
            context=_whole(fields, "max_position_embeddings", where),
            head_width=0 if fields["head_dim"] is None else _whole(fields, "head_dim", where),
            rope_theta=float(_rope(raw).get("rope_theta") or raw.get("rope_theta") or 10000.0),
            norm_eps=float(fields["rms_norm_eps"]),
            activation="relu2" if fields["hidden_act"] == "relu" else "swiglu",
            qk_norm=family == "qwen3",
            tie_embeddings=bool(fields["tie_word_embeddings"]),
        )
    except InputError as error:
        raise InputError(*(f"{where}: {fault}" for fault in error.faults)) from error
    return config, head


def _head(raw: Mapping[str, Any], family: str, where: str) -> Head:
    architecture = (raw.get("architectures") or [_FAMILIES[family] + "ForCausalLM"])[0]
    if architecture == _FAMILIES[family] + "ForCausalLM":
        return "language"
    if architecture != _FAMILIES[family] + "ForSequenceClassification":
        raise InputError(
            f"{where}: architectures={architecture!r} is not supported: use "
            f"{_FAMILIES[family]}ForCausalLM, or {_FAMILIES[family]}ForSequenceClassification "
            "with one label"
        )
    labels = len(raw["id2label"]) if "id2label" in raw else raw.get("num_labels", 2)
    if labels != 1:
        raise InputError(f"{where}: num_labels={labels}: a reward model has one label")
    return "scalar"


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}


def _faults(raw: Mapping[str, Any]) -> list[str]:
    """A line for each feature that is asked for and not there."""
    faults = []
    for name in ("attention_bias", "mlp_bias", "use_sliding_window", "quantization_config"):
        if raw.get(name):
            faults.append(f"{name} is set and not supported: use a model without it")
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
        faults.append(f"{name} asks for {kind!r}, not supported: use a model with plain RoPE")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) not in (1, None):
        faults.append("partial_rotary_factor is not 1: use a model with RoPE on whole heads")
    if set(raw.get("layer_types") or ()) - {"full_attention"}:
        faults.append("layer_types holds more than 'full_attention': use a model of that alone")
    if raw.get("hidden_act", "silu") not in ("silu", "swish", "relu"):
        faults.append(f"hidden_act={raw['hidden_act']!r} is not supported: use a model with 'silu'")
    return faults


def _whole(fields: Mapping[str, Any], name: str, where: str) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {name}={value!r}: write a whole number of 1 or more")
    return value
