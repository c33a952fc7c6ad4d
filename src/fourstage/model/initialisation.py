"""Weights before the first step, as a function of the seed and their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourstage.model.attention import Attention
from fourstage.model.config import ModelConfig
from fourstage.model.norms import RMSNorm
from fourstage.randomness import generator

if TYPE_CHECKING:
    from fourstage.model.transformer import Transformer

_OUTPUTS = ("o_proj.weight", "down_proj.weight", "experts.down_proj")


@torch.no_grad()
def initialise(model: Transformer, seed: int, width_ratio: float = 1.0) -> None:
    """Draws every weight: N(0, 1/width), output projections zero, norms one, biases zero.

    Zero output projections let every block start as the identity (Zhang et al., Fixup, 2019); with
    them small runs learn faster at a high rate. Each key projection starts equal to the queries' of
    its group, so that attention begins by comparing contents (Trockman and Kolter, *Mimetic
    Initialization of Self-Attention Layers*, 2023): looking back is then learnt from half the
    tokens.

    Args:
        width_ratio: width over the width that learning rates are for. The head's weights shrink by
            its root, so that the first logits do (muP: Yang et al., 2022, table 3).
    """
    gains = {id(part.weight): part for part in model.modules() if isinstance(part, RMSNorm)}
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            norm = gains.get(id(weight))
            weight.fill_(0.0 if name.endswith("bias") else 1.0 - (norm.offset if norm else 0.0))
            continue
        std = initial_std(name, weight.shape, model.config)
        if name == "lm_head.weight":
            std *= width_ratio**-0.5
        if std == 0.0:
            weight.zero_()
        elif weight.dim() == 3:
            # One by one, so that an expert's weights do not depend on how many there are.
            for expert, matrix in enumerate(weight):
                _draw(matrix, seed, f"{name}.{expert}", std)
        else:
            _draw(weight, seed, name, std)
    for module in model.modules():
        if isinstance(module, Attention):
            module.begin_by_content()


def initial_std(name: str, shape: torch.Size, config: ModelConfig) -> float:
    """Standard deviation that a matrix named `name`, [..., out, in], is drawn with."""
    if name.endswith(_OUTPUTS) and config.norm_placement == "before":
        return 0.0
    # A norm behind an output would blow zero up to noise of size one in the first steps, so there
    # outputs are drawn like all else.
    if name == "score.weight":
        return (shape[-1] + 1) ** -0.5
    if name.endswith("embed_tokens.weight") and not config.tie_embeddings:
        return 1.0
    if name.endswith("embed_positions.weight"):
        # Half of the tokens', as in GPT-2.
        return 0.5 * initial_std("embed_tokens.weight", shape, config)
    if name.endswith("mlp.gate.weight"):
        # A router that starts undecided (Fedus et al., *Switch Transformers*, 2022, section 2.4).
        return (0.1 / shape[-1]) ** 0.5
    return shape[-1] ** -0.5


def _draw(weight: Tensor, seed: int, name: str, std: float) -> None:
    drawn = torch.randn(weight.shape, generator=generator(seed, "weights", name))
    weight.copy_(drawn * std)
