"""Products of training in fp8: large linear layers of the blocks, by torchao.

Each input is scaled by its largest number, then rounded: e4m3 forwards, e5m2 for gradients
(Micikevicius et al., *FP8 Formats for Deep Learning*, 2022). Weights stay fp32 and keep their
names; the language head, embeddings, norms, attention's inner product and experts stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Any

from torch import nn

from fourstage.errors import MachineError
from fourstage.model.transformer import Transformer

# Of a layer's smaller side: below it, rounding costs more time than the product saves.
LEAST = 512
# What the kernels ask of both sides.
_MULTIPLE = 16


def is_converted(layer: nn.Module) -> bool:
    """Whether a layer of a block is to compute in fp8."""
    if type(layer) is not nn.Linear or layer.weight.requires_grad is False:
        return False
    sides = (layer.in_features, layer.out_features)
    return min(sides) >= LEAST and not any(side % _MULTIPLE for side in sides)


def convert(module: nn.Module, **options: Any) -> int:
    """Makes the large layers of all blocks compute in fp8, in place; how many there are.

    Args:
        options: of torchao's `Float8LinearConfig`, beside those used here.

    Raises:
        MachineError: torchao is not installed, or no layer is large enough.
    """
    try:
        from torchao.float8 import (  # ty: ignore[import-not-found]
            Float8LinearConfig,
            convert_to_float8_training,
        )
    except ImportError as error:
        raise MachineError(
            "compute.precision=fp8 needs torchao: pip install 'fourstage[fp8]', or write "
            "compute.precision=bf16"
        ) from error
    # Gradients of weights sum over cells, whose number is no multiple of what kernels ask for.
    config = dataclasses.replace(Float8LinearConfig(), pad_inner_dim=True, **options)
    count = 0
    for model in (part for part in module.modules() if isinstance(part, Transformer)):
        for block in model.model.layers:
            count += sum(is_converted(part) for part in block.modules())
            convert_to_float8_training(
                block, module_filter_fn=lambda layer, name: is_converted(layer), config=config
            )
    if not count:
        raise MachineError(
            f"compute.precision=fp8: no layer has both sides of {LEAST} or more, in multiples of "
            f"{_MULTIPLE}, so that nothing would be faster: write compute.precision=bf16"
        )
    return count


def restore(module: nn.Module) -> None:
    """Makes converted layers plain ones again, with the same weights."""
    from torchao.float8.float8_linear import Float8Linear  # ty: ignore[import-not-found]

    for parent in module.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, Float8Linear):
                plain = nn.Linear(
                    layer.in_features, layer.out_features, layer.bias is not None, device="meta"
                )
                plain.weight, plain.bias = layer.weight, layer.bias
                setattr(parent, name, plain.train(layer.training))


@contextlib.contextmanager
def as_plain(module: nn.Module) -> Generator[None]:
    """Within, its converted layers are plain: no cell is rounded by what is beside it."""
    restore(module)
    try:
        yield
    finally:
        convert(module)
