"""How much of a model a stage trains, and in how many bytes it holds the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fourstage.model.config import ModelConfig
from fourstage.planning.activations import FP32
from fourstage.planning.memory import Step
from fourstage.recipe.schema import Stage

if TYPE_CHECKING:
    from fourstage.model.transformer import Transformer
    from fourstage.recipe.adapter import Adapter


def narrowed(step: Step, config: ModelConfig, section: Stage) -> Step:
    """The step of a stage that freezes weights or has an adapter, by a model without memory.

    Raises:
        InputError: a pattern of `freeze` or a target of the adapter fits nothing.
    """
    if section.adapter is None and not section.freeze:
        return step
    import torch

    from fourstage.adapters.adapting import freeze
    from fourstage.model.transformer import Transformer

    with torch.device("meta"):
        models = [Transformer(config, "scalar" if step.scores else "language")]
        if step.models > 1:
            models.append(Transformer(config, "scalar"))
    freeze(models, section.freeze or ())
    if section.adapter is not None:
        return _with_adapter(step, models[0], section.adapter)
    trained = sum(p.numel() for p in models[0].parameters() if p.requires_grad)
    return replace(step, trained_share=trained / config.parameters())


def _with_adapter(step: Step, model: Transformer, adapter: Adapter) -> Step:
    from fourstage.adapters.adapting import layers_to_adapt
    from fourstage.adapters.quantised import bytes_of

    trained, saved, quantised = 0, 0, 0
    for layer in layers_to_adapt(model, adapter).values():
        rows, columns = layer.weight.shape
        trained += adapter.rank * (rows + columns) + (rows if adapter.kind == "dora" else 0)
        saved += bytes_of(rows, columns, "full") - bytes_of(rows, columns, adapter.base)
        quantised += rows * columns if adapter.base != "full" else 0
    every = model.config.parameters()
    return replace(
        step,
        trained_share=trained / every,
        weight_bytes=FP32 + (FP32 * trained - saved) / every,
        has_adapter=True,
        quantised_share=quantised / every,
    )
