"""Puts adapters into a model and takes them out again; the model's own code knows nothing of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fourstage.adapters.layer import AdaptedLinear
from fourstage.adapters.quantised import QuantisedLinear
from fourstage.errors import InputError, nearest
from fourstage.model.experts import Mixture
from fourstage.model.transformer import Transformer
from fourstage.recipe.adapter import Adapter
from fourstage.recipe.schema import Stage


def narrow(models: Sequence[Transformer], section: Stage, seed: int) -> None:
    """Freezes what a stage does not train and puts adapters into its models, in place.

    Raises:
        InputError: a pattern of `freeze` or a target of the adapter fits nothing.
    """
    freeze(models, section.freeze or ())
    if section.adapter is not None:
        for model in models:
            adapt(model, section.adapter, seed)


def freeze(models: Sequence[nn.Module], patterns: Sequence[str]) -> None:
    """Freezes the parameters whose names fit a pattern, such as `model.layers.0.*`.

    Raises:
        InputError: a pattern fits no parameter of any of the models.
    """
    names = list(dict.fromkeys(name for model in models for name, _ in model.named_parameters()))
    faults = [
        f"freeze: no parameter is called {pattern!r}{nearest(pattern, names)}"
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if faults:
        raise InputError(*faults)
    for model in models:
        for name, parameter in model.named_parameters():
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                parameter.requires_grad_(False)


def adapt(model: Transformer, settings: Adapter, seed: int) -> None:
    """Freezes a model and gives its linear layers adapters, in place.

    A scalar head is trained in full beside them. A layer that is frozen already gets none.

    Raises:
        InputError: a target is no linear layer of the blocks, or none is left to adapt.
    """
    chosen = layers_to_adapt(model, settings)
    for name, parameter in model.named_parameters():
        if not (model.head == "scalar" and name.startswith("score.")):
            parameter.requires_grad_(False)
    for name, layer in chosen.items():
        model.set_submodule(name, AdaptedLinear(layer, settings, seed, name))


def layers_to_adapt(model: Transformer, settings: Adapter) -> dict[str, nn.Linear]:
    """The layers that get an adapter, by name.

    Raises:
        InputError: a target is no linear layer of the blocks, or none is left to adapt.
    """
    layers = dict(linear_layers(model))
    known = sorted({name.rsplit(".", 1)[1] for name in layers})
    targets = settings.targets or known
    for target in targets:
        if target not in known:
            raise InputError(
                f"adapter.targets names {target!r}, which is no linear layer of the model's "
                f"blocks{nearest(target, known)} (they are {', '.join(known)})"
            )
    chosen = {name: layer for name, layer in layers.items() if name.rsplit(".", 1)[1] in targets}
    found = {name: layer for name, layer in chosen.items() if layer.weight.requires_grad}
    if not found:
        raise InputError("every layer that adapter.targets names is frozen: freeze less")
    return found


def linear_layers(model: Transformer) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of the blocks by name, but routers: what an adapter can be beside."""
    routers = {id(part.gate) for part in model.modules() if isinstance(part, Mixture)}
    for name, part in model.named_modules():
        inside = name.startswith("model.layers.") and id(part) not in routers
        if inside and isinstance(part, nn.Linear):
            yield name, part


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted layers by name."""
    return {n: part for n, part in model.named_modules() if isinstance(part, AdaptedLinear)}


def merge(model: nn.Module) -> None:
    """Replaces adapted layers by plain ones that compute the same, in place."""
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, layer.merged())


def base_of(model: Transformer) -> Transformer:
    """The model without its adapters, in the same memory: a reference that takes none of its own.

    It stays what it is while adapters train, and is gone once the model's weights are.
    """
    shared: dict[int, Any] = {
        id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())
    }
    base = copy.deepcopy(model, shared)
    for name, layer in adapted_layers(base).items():
        base.set_submodule(name, layer.base_layer)
    return base


def trained_share(module: nn.Module) -> float:
    """Numbers that are trained over those that a module has without adapters."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained / max(1, _weights(module))


def quantised_share(module: nn.Module) -> float:
    """Share of a module's weights, without adapters, that are held in codes."""
    return sum(map(_matrix, _quantised(module))) / max(1, _weights(module))


def _weights(module: nn.Module) -> int:
    """Numbers of a module without adapters; codes and scales count as the matrix they stand for."""
    layers = _quantised(module)
    passed = {id(p) for layer in layers for p in (layer.codes, layer.scales)}
    passed |= {id(p) for layer in adapted_layers(module).values() for p in layer.adapter()}
    whole = sum(p.numel() for p in module.parameters() if id(p) not in passed)
    return whole + sum(map(_matrix, layers))


def _quantised(module: nn.Module) -> list[QuantisedLinear]:
    return [part for part in module.modules() if isinstance(part, QuantisedLinear)]


def _matrix(layer: QuantisedLinear) -> int:
    return layer.in_features * layer.out_features
