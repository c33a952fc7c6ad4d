"""What each parameter is to an optimiser, and how its learning rate goes with the model's width."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import nn

# tables: embeddings, learned positions. matrices: all that lies between; experts' are stacked.
# heads: from the stream to numbers of which there are no more in a wider model. The two factors of
# an adapter read from the width (A) and from the rank (B), which goes with nothing.
Role: TypeAlias = Literal["table", "matrix", "head", "lora_A", "lora_B", "vector"]

_HEADS = ("lm_head.weight", "score.weight", "mlp.gate.weight")


def roles(module: nn.Module) -> dict[str, Role]:
    """The role of each parameter by name; a table that is also the head (tied) is a table."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    found: dict[str, Role] = {}
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 or name.endswith(".bias"):
            found[name] = "vector"
        elif id(parameter) in tables:
            found[name] = "table"
        elif name.endswith("lora_A"):
            found[name] = "lora_A"
        elif name.endswith("lora_B"):
            found[name] = "lora_B"
        else:
            found[name] = "head" if name.endswith(_HEADS) else "matrix"
    return found


def decays(role: Role) -> bool:
    """Matrices and adapters decay; norms, biases and tables do not: their scale is no fit."""
    return role not in ("table", "vector")


def width_factor(role: Role, optimiser: str, width_ratio: float) -> float:
    """Factor on the learning rate of a model `width_ratio` times as wide as the one it is for.

    Maximal update parametrisation (Yang et al., *Tensor Programs V*, 2022, table 3): under Adam,
    what has a width on its input side learns at 1 / width, tables, vectors and an adapter's B as
    they are (Hayou et al., *LoRA+*, 2024, find the same of A and B). An
    orthogonalised update has full rank, where Adam's lines up with the activations: brought to the
    size of Adam's entries its spectral norm grows as sqrt(width), so it takes 1 / sqrt(width).
    """
    if role in ("table", "vector", "lora_B"):
        return 1.0
    return width_ratio ** (-0.5 if optimiser == "muon" and role == "matrix" else -1.0)
