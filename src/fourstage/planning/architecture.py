"""From the options of a recipe to those of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fourstage.model.config import ModelConfig, RopeScaling
from fourstage.model.families import windows

# Sizes are searched for (`fourstage.planning.shapes`); every other field is an option.
SIZES = ("layers", "width", "heads", "kv_heads", "mlp_width", "head_width", "tie_embeddings")
_OUTSIDE = {*SIZES, "vocab_size", "context"}
DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(ModelConfig)
    if field.name not in _OUTSIDE
}


def options_of(section: Mapping[str, Any], layers: int, context: int) -> dict[str, Any]:
    """What `ModelConfig` takes beside sizes, from the values of `model`; None is its default."""
    options = {name: section[name] for name in DEFAULTS if section.get(name) not in (None, "")}
    if options.get("rope_scaling") is not None:
        options["rope_scaling"] = _scaling(options["rope_scaling"], context)
    if not options.get("windows"):
        options["windows"] = windows(
            section.get("window") or 0, section.get("full_every") or 0, layers
        )
    return options


def _scaling(section: Mapping[str, Any], context: int) -> RopeScaling:
    scaling = RopeScaling(**section)
    lists = {name: tuple(section[name]) for name in ("short_factors", "long_factors")}
    original = scaling.original_context or round(context / scaling.factor)
    return dataclasses.replace(scaling, original_context=original, **lists)
