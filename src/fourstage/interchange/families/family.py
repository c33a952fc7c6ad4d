"""What is known of an architecture of transformers, and what the relatives of Llama share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fourstage.interchange.families import traits
from fourstage.interchange.families.naming import Names
from fourstage.interchange.families.traits import Trait


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    Attributes:
        model_type: of config.json. writer, scorer: its classes with a language and a scalar head.
        options: of `ModelConfig`, those that differ from its defaults in every model of the family.
        traits: the other options, and their fields.
        defaults: what transformers takes where a config leaves a field out; it leaves out its own.
        aliases: other spellings of fields, which hold where the usual one is absent.
        refused: fields that must be unset, for features that the model lacks.
        names: of the weights.
    """

    model_type: str
    writer: str
    scorer: str
    traits: tuple[Trait, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    names: Names = field(default_factory=Names)


LENGTH = "max_position_embeddings"
DTYPE = traits.constants(torch_dtype="float32", dtype="float32")
TIES = traits.flags(tie_embeddings="tie_word_embeddings")
# Written for programs that expect them; nothing here reads them.
UNUSED = traits.constants(initializer_range=0.02, use_cache=True)
_NO_DROPOUT = traits.constants(attention_dropout=0.0)
_NO_BIAS = traits.constants(attention_bias=False)


def shape(mlp: bool = True) -> Trait:
    """The sizes by their usual names, with or without that of the MLP."""
    widths = {"mlp_width": "intermediate_size"} if mlp else {}
    return traits.sizes(
        vocab_size="vocab_size",
        width=traits.WIDTH,
        **widths,
        layers="num_hidden_layers",
        heads=traits.HEADS,
    )


def like_llama(
    rope: Trait,
    *,
    attention_bias: Trait = _NO_BIAS,
    act: str = "hidden_act",
    has_head_width: bool = True,
    mlp: bool = True,
) -> tuple[Trait, ...]:
    """The traits that Llama and its relatives share.

    Args:
        act: the field of the activation. has_head_width: the config class has a field for it.
        mlp: the width of the MLP is among them.
    """
    return (
        shape(mlp),
        traits.kv_heads(),
        traits.head_width(has_head_width),
        traits.activation(act, traits.GATED),
        traits.sizes(context=LENGTH),
        traits.numbers(norm_eps="rms_norm_eps"),
        rope,
        DTYPE,
        TIES,
        attention_bias,
        _NO_DROPOUT,
        UNUSED,
    )


def llama_defaults(**changes: Any) -> dict[str, Any]:
    """What transformers takes for a field that a relative of Llama leaves out."""
    usual: dict[str, Any] = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    return usual | changes
