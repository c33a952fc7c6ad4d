"""How options of a model are written in a `config.json`, and read back: one trait for each kind.

A family (`family.py`) is a list of traits. `read` takes the fields, `transformers`' own defaults
filled in, and gives options of `ModelConfig`; `write` is its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fourstage.errors import InputError
from fourstage.model.config import ModelConfig

Fields = Mapping[str, Any]

# Activations by the names of transformers; the first one of each is the one that is written.
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu",
    "gelu_new": "geglu",
    # relu(gate x) * up x with gate = up is relu(up x)^2: the weights show whether it is.
    "relu": "relu2",
}
PLAIN = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
}


@dataclass(frozen=True)
class Trait:
    """Some options of a model, and the fields that say them."""

    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


def whole(fields: Fields, name: str) -> int:
    """A field that counts something.

    Raises:
        InputError: it is no whole number of 1 or more.
    """
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r}: write a whole number of 1 or more")
    return value


def number(fields: Fields, name: str) -> float:
    """A field that measures something.

    Raises:
        InputError: it is no number.
    """
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name}={value!r}: write a number")
    return float(value)


def sizes(**names: str) -> Trait:
    """Whole numbers: option = field."""
    return Trait(
        lambda fields: {option: whole(fields, name) for option, name in names.items()},
        lambda config: {name: getattr(config, option) for option, name in names.items()},
    )


def numbers(**names: str) -> Trait:
    """Real numbers where null is 0: option = field."""
    return Trait(
        lambda fields: {
            option: 0.0 if fields.get(name) is None else number(fields, name)
            for option, name in names.items()
        },
        lambda config: {name: getattr(config, option) or None for option, name in names.items()},
    )


def flags(**names: str) -> Trait:
    """Yes or no: option = field."""
    return Trait(
        lambda fields: {option: bool(fields.get(name)) for option, name in names.items()},
        lambda config: {name: getattr(config, option) for option, name in names.items()},
    )


def constants(**fields: Any) -> Trait:
    """Fields that are written and say nothing of the model."""
    return Trait(lambda _: {}, lambda _: dict(fields))


def four_times_as_wide(width: str, name: str = "") -> Trait:
    """An MLP of 4 times the model's width, unless the field `name` says another one."""

    def read(fields: Fields) -> dict[str, Any]:
        said = name and fields.get(name) is not None
        return {"mlp_width": whole(fields, name) if said else 4 * whole(fields, width)}

    return Trait(read, lambda config: {name: config.mlp_width} if name else {})


WIDTH, HEADS, KV_HEADS, HEAD_WIDTH = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def kv_heads(name: str = HEADS) -> Trait:
    """Heads of keys and values, as many as of queries where the field is null."""
    return Trait(
        lambda fields: {
            "kv_heads": whole(fields, name if fields.get(KV_HEADS) is None else KV_HEADS)
        },
        lambda config: {KV_HEADS: config.kv_heads},
    )


def equal_kv_heads(name: str) -> Trait:
    """A key head for each query head, which no field says."""
    return Trait(lambda fields: {"kv_heads": whole(fields, name)}, lambda _: {})


def head_width(always: bool = True) -> Trait:
    """Numbers a head; families whose config class lacks the field write it where it is unusual."""

    def write(config: ModelConfig) -> dict[str, Any]:
        usual = config.head_width * config.heads == config.width
        return {} if usual and not always else {HEAD_WIDTH: config.head_width}

    return Trait(
        lambda fields: {
            "head_width": 0 if fields.get(HEAD_WIDTH) is None else whole(fields, HEAD_WIDTH)
        },
        write,
    )


def activation(name: str, known: Mapping[str, str]) -> Trait:
    """The non-linearity of the MLP, by the names of `GATED` or `PLAIN`."""
    names: dict[str, str] = {}
    for written, option in known.items():
        names.setdefault(option, written)

    def read(fields: Fields) -> dict[str, Any]:
        value = str(fields.get(name))
        if value not in known:
            usual = " or ".join(map(repr, list(known)[:2]))
            raise InputError(f"{name}={value!r} is not supported: use a model with {usual}")
        return {"activation": known[value]}

    return Trait(read, lambda config: {name: names.get(config.activation, config.activation)})


def biases() -> Trait:
    """One switch for the biases of all four projections of attention."""
    return Trait(
        lambda fields: dict.fromkeys(
            ("qkv_bias", "output_bias"), bool(fields.get("attention_bias"))
        ),
        lambda config: {"attention_bias": config.qkv_bias},
    )


def query_scale() -> Trait:
    """Gemma's factor on scores, given as the number whose inverse root it is."""

    def write(config: ModelConfig) -> dict[str, Any]:
        return {"query_pre_attn_scalar": round(config.attention_scale**-2)}

    return Trait(
        lambda fields: {"attention_scale": whole(fields, "query_pre_attn_scalar") ** -0.5}, write
    )


def scaled_scores() -> Trait:
    """GPT-2's switch for the factor head_width ** -0.5 on scores."""
    return Trait(
        lambda fields: {} if fields.get("scale_attn_weights") else {"attention_scale": 1.0},
        lambda config: {
            "scale_attn_weights": config.attention_scale != 1 or config.head_width == 1
        },
    )


def scaled_embeddings() -> Trait:
    """Gemma's factor on embeddings, the root of the width, which no field says."""
    return Trait(lambda fields: {"embedding_multiplier": whole(fields, WIDTH) ** 0.5}, lambda _: {})


def experts(count: str, width: str) -> Trait:
    """A mixture of experts in every layer; `count` and `width` name the fields of their sizes."""
    named = sizes(experts=count, experts_per_token="num_experts_per_tok", mlp_width=width)

    def read(fields: Fields) -> dict[str, Any]:
        if fields.get("mlp_only_layers"):
            raise InputError("mlp_only_layers is set and not supported: use a model without it")
        if fields.get("decoder_sparse_step", 1) != 1:
            raise InputError("decoder_sparse_step is not 1: use a model with experts in all layers")
        return named.read(fields)

    return Trait(read, named.write)
