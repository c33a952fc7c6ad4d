"""Sliding windows of attention in a `config.json`: whose layers have one, and how wide it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fourstage.errors import InputError
from fourstage.interchange.families.traits import Fields, Trait, number, whole
from fourstage.model.config import ModelConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"
_PERIOD = "sliding_window_pattern"


def everywhere(switch: str | None = None) -> Trait:
    """One window for all layers or for none (Mistral, Phi-3, Mixtral).

    Args:
        switch: a field that turns the window off (Qwen3-MoE).
    """

    def read(fields: Fields) -> dict[str, Any]:
        used = fields.get("sliding_window") is not None and (not switch or fields.get(switch))
        types = [_SLIDING if used else _FULL] * whole(fields, "num_hidden_layers")
        return _windows(fields, types)

    def write(config: ModelConfig) -> dict[str, Any]:
        used = {switch: any(config.windows)} if switch else {}
        return used | {"sliding_window": _width(config)}

    return Trait(read, write)


def some(first: str = "max_window_layers", switch: str = "use_sliding_window") -> Trait:
    """A window from one layer on, or where `layer_types` says so (Qwen2, Qwen3)."""

    def read(fields: Fields) -> dict[str, Any]:
        used = bool(fields.get(switch)) and fields.get("sliding_window") is not None
        start = number({first: 0, **fields}, first) if used else 0
        return _windows(fields, _types(fields, lambda layer: used and layer >= start))

    def write(config: ModelConfig) -> dict[str, Any]:
        used = any(config.windows)
        said: dict[str, Any] = {switch: used, "sliding_window": _width(config)}
        if used:
            opened = [layer for layer in range(config.layers) if not config.window(layer)]
            said[first] = max(opened, default=-1) + 1
        return said | {"layer_types": _written(config)}

    return Trait(read, write)


def alternating(period: int) -> Trait:
    """A window in all layers but each `period`-th, or where `layer_types` says so (Gemma)."""

    def read(fields: Fields) -> dict[str, Any]:
        every = whole({_PERIOD: fields.get(_PERIOD) or period}, _PERIOD)
        return _windows(fields, _types(fields, lambda layer: (layer + 1) % every != 0))

    def write(config: ModelConfig) -> dict[str, Any]:
        return {"sliding_window": _width(config), "layer_types": _written(config)}

    return Trait(read, write)


def nowhere(written: bool = False) -> Trait:
    """No layer has a window, whatever `layer_types` says must agree."""

    def read(fields: Fields) -> dict[str, Any]:
        if any(kind != _FULL for kind in _listed(fields) or ()):
            raise InputError(
                "layer_types holds more than 'full_attention': use a model of that alone"
            )
        return {}

    return Trait(read, lambda config: {"layer_types": _written(config)} if written else {})


def _types(fields: Fields, usual: Callable[[int], bool]) -> list[str]:
    """The kind of each layer: as `layer_types` lists them, else by the family's rule."""
    layers = whole(fields, "num_hidden_layers")
    listed = _listed(fields)
    if listed is None:
        return [_SLIDING if usual(layer) else _FULL for layer in range(layers)]
    unknown = [kind for kind in listed if kind not in (_FULL, _SLIDING)]
    if unknown:
        raise InputError(
            f"layer_types holds {unknown[0]!r}, not supported: use a model of '{_FULL}' and "
            f"'{_SLIDING}'"
        )
    if len(listed) != layers:
        raise InputError(f"layer_types names {len(listed)} layers and the model has {layers}")
    return listed


def _listed(fields: Fields) -> list[Any] | None:
    listed = fields.get("layer_types")
    if listed is not None and not isinstance(listed, list):
        raise InputError(f"layer_types={listed!r}: write a list of names, or leave it out")
    return listed


def _windows(fields: Fields, types: Sequence[str]) -> dict[str, Any]:
    """A width a layer; no layer with a window is the empty tuple."""
    if _SLIDING not in types:
        return {}
    width = whole(fields, "sliding_window")
    return {"windows": tuple(width if kind == _SLIDING else 0 for kind in types)}


def _width(config: ModelConfig) -> int | None:
    return max(config.windows, default=0) or None


def _written(config: ModelConfig) -> list[str]:
    return [_SLIDING if config.window(layer) else _FULL for layer in range(config.layers)]
