"""Rotary positions in a `config.json`: their base, their share of a head, and their scaling.

transformers 5 reads `rope_parameters`, older versions `rope_theta` and `rope_scaling`; both are
written, and either is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fourstage.errors import InputError
from fourstage.interchange.families.traits import Fields, Trait, number, whole
from fourstage.model.config import ModelConfig, RopeScaling

_CONTEXT = "max_position_embeddings"
_ORIGINAL = "original_max_position_embeddings"
_FRACTION = "partial_rotary_factor"
KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope")
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def as_saved(config: ModelConfig) -> ModelConfig:
    """The same angles in the one way that a config.json says them.

    A scaling by the length of the sequence (`dynamic`) is one table here, of the model's context:
    beyond the original one that is plain RoPE of a larger base, and in transformers only so.
    """
    scaling = config.rope_scaling
    if scaling is None or config.positions != "rotary":
        return config
    if scaling.kind == "linear":
        return replace(config, rope_scaling=replace(scaling, original_context=0))
    original = scaling.original_context or config.context
    if scaling.kind != "dynamic" or config.context <= original:
        return config
    stretch = scaling.factor * config.context / original - (scaling.factor - 1)
    width = config.rotary_width
    base = config.rope_theta * stretch ** (width / (width - 2)) if width > 2 else config.rope_theta
    return replace(config, rope_theta=base, rope_scaling=None)


def rotary(
    theta: float = 10000.0,
    *,
    kinds: tuple[str, ...] = KINDS,
    fraction: float | None = None,
    base_name: str = "rope_theta",
    fraction_name: str = _FRACTION,
    original_outside: bool = False,
) -> Trait:
    """One table of angles for all layers.

    Args:
        theta: the base where none is written.
        kinds: scalings that the family's class in transformers takes.
        fraction: the share of a head that is turned where none is written; None: always all of it.
        base_name, fraction_name: what older versions call the two.
        original_outside: the original context is a field of the config (Phi-3).
    """

    def read(fields: Fields) -> dict[str, Any]:
        said = {**_group(fields, "rope_scaling"), **_group(fields, "rope_parameters")}
        share = said.get(_FRACTION, fields.get(fraction_name))
        share = number({_FRACTION: (fraction or 1.0) if share is None else share}, _FRACTION)
        if fraction is None and share != 1:
            raise InputError(f"{_FRACTION} is not 1: use a model with RoPE on whole heads")
        base = said.get("rope_theta") or fields.get(base_name) or theta
        name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
        return {
            "rope_fraction": share,
            "rope_theta": number({base_name: base}, base_name),
            "rope_scaling": _scaling(said, fields, kinds, name),
        }

    def write(config: ModelConfig) -> dict[str, Any]:
        scaling = _written(config.rope_scaling, config.context)
        base = {"rope_type": "default", "rope_theta": config.rope_theta}
        fields: dict[str, Any] = {base_name: config.rope_theta}
        if fraction is not None:
            fields[fraction_name] = base[_FRACTION] = config.rope_fraction
        fields["rope_parameters"] = base | scaling
        if original_outside:
            fields |= _as_phi3(scaling, config.context)
        elif scaling:
            fields["rope_scaling"] = {"type": scaling["rope_type"], **scaling}
        return fields

    return Trait(read, write)


def local_and_global() -> Trait:
    """Gemma 3: plain angles of a base of their own in layers with a window."""

    def read(fields: Fields) -> dict[str, Any]:
        said = _group(fields, "rope_parameters")
        whole_context = {**_group(fields, "rope_scaling"), **_group(said, _GLOBAL)}
        local = _group(said, _LOCAL)
        if local.get("rope_type", "default") != "default":
            raise InputError(
                f"rope_parameters asks for {local['rope_type']!r} in {_LOCAL}, not supported: use "
                "a model with plain RoPE there"
            )
        base = whole_context.get("rope_theta") or fields.get("rope_theta") or 1e6
        local_base = local.get("rope_theta") or fields.get("rope_local_base_freq") or 1e4
        return {
            "rope_theta": number({"rope_theta": base}, "rope_theta"),
            "local_rope_theta": number(
                {"rope_local_base_freq": local_base}, "rope_local_base_freq"
            ),
            "rope_scaling": _scaling(whole_context, fields, KINDS, "rope_scaling"),
        }

    def write(config: ModelConfig) -> dict[str, Any]:
        scaling = _written(config.rope_scaling, config.context)
        local = config.local_rope_theta or config.rope_theta
        fields: dict[str, Any] = {
            "rope_theta": config.rope_theta,
            "rope_local_base_freq": local,
            "rope_parameters": {
                _GLOBAL: {"rope_type": "default", "rope_theta": config.rope_theta, **scaling},
                _LOCAL: {"rope_type": "default", "rope_theta": local},
            },
        }
        if scaling:
            fields["rope_scaling"] = scaling
        return fields

    return Trait(read, write)


def _group(fields: Fields, name: str) -> Mapping[str, Any]:
    """A field that holds fields; none where it is null or left out."""
    value = fields.get(name) or {}
    if not isinstance(value, Mapping):
        raise InputError(f"{name}={value!r}: write an object, or leave it out")
    return value


def _as_phi3(scaling: dict[str, Any], context: int) -> dict[str, Any]:
    """Phi-3's form: its class takes three fields alone, and divides the two contexts itself."""
    original = scaling.get(_ORIGINAL, context)
    if not scaling:
        return {_ORIGINAL: original}
    said = {"type": scaling["rope_type"]}
    left_out = {"rope_type", _ORIGINAL}
    if scaling["factor"] == context / original:
        left_out.add("factor")
    said |= {name: value for name, value in scaling.items() if name not in left_out}
    return {_ORIGINAL: original, "rope_scaling": said}


def _scaling(
    said: Mapping[str, Any], fields: Fields, kinds: tuple[str, ...], name: str
) -> RopeScaling | None:
    """What `said`, named `name` in errors, asks for; None is plain RoPE."""
    kind = said.get("rope_type", said.get("type", "default"))
    # Phi-3's first names for the same.
    if kind == "su" or (kind == "yarn" and "long_factor" in said):
        kind = "longrope"
    if kind in (None, "default"):
        return None
    if kind not in kinds:
        raise InputError(f"{name} asks for {kind!r}, not supported: use a model with plain RoPE")
    context = whole(fields, _CONTEXT)
    original = whole(
        {_ORIGINAL: fields.get(_ORIGINAL) or said.get(_ORIGINAL) or context}, _ORIGINAL
    )
    if kind == "longrope":
        return _longrope(said, context, original, name)
    said = {"factor": None, **said}
    factor = number(said, "factor")
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind == "dynamic":
        return RopeScaling("dynamic", factor, context)
    if kind == "llama3":
        low, high = number(said, "low_freq_factor"), number(said, "high_freq_factor")
        return RopeScaling("llama3", factor, original, low_frequency=low, high_frequency=high)
    if said.get("truncate") is False:
        raise InputError(f"{name} sets truncate=false, not supported: use a model without it")
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_slow=number({"beta_slow": 1, **_set(said)}, "beta_slow"),
        beta_fast=number({"beta_fast": 32, **_set(said)}, "beta_fast"),
        attention_factor=_yarn_attention(said, factor),
    )


def _yarn_attention(said: Mapping[str, Any], factor: float) -> float:
    """0 for the paper's; DeepSeek's configs give the ratio of two of its form."""
    said = _set(said)
    if "attention_factor" in said:
        return number(said, "attention_factor")
    if not said.get("mscale") or not said.get("mscale_all_dim") or factor <= 1:
        return 0.0
    growth = 0.1 * math.log(factor)
    return (growth * number(said, "mscale") + 1) / (growth * number(said, "mscale_all_dim") + 1)


def _set(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if value is not None}


def _longrope(said: Mapping[str, Any], context: int, original: int, name: str) -> RopeScaling:
    factors = {}
    for key in ("short_factor", "long_factor"):
        values = said.get(key)
        if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
            raise InputError(f"{name} holds {key}={values!r}: write a list of numbers")
        factors[key] = tuple(float(value) for value in values)
    return RopeScaling(
        "longrope",
        number({"factor": context / original, **_set(said)}, "factor"),
        original,
        attention_factor=number({"attention_factor": 0.0, **_set(said)}, "attention_factor"),
        short_factors=factors["short_factor"],
        long_factors=factors["long_factor"],
    )


def _written(scaling: RopeScaling | None, context: int) -> dict[str, Any]:
    """The fields of a scaling, without its base; none for plain RoPE."""
    if scaling is None:
        return {}
    said: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("yarn", "llama3", "longrope"):
        said[_ORIGINAL] = scaling.original_context or context
    if scaling.kind == "llama3":
        said |= {
            "low_freq_factor": scaling.low_frequency,
            "high_freq_factor": scaling.high_frequency,
        }
    if scaling.kind == "yarn":
        said |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    if scaling.kind == "longrope":
        said |= {
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
        }
    if scaling.attention_factor:
        said["attention_factor"] = scaling.attention_factor
    return said
