"""The shape of a model, and what it costs: exact parameter and FLOP counts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fourstage.errors import InputError

Activation = Literal["swiglu", "relu2"]


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, a gated or squared MLP.

    A `head_width` of 0 is width / heads.

    Raises:
        InputError: the sizes do not fit one another.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    context: int
    head_width: int = 0
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    activation: Activation = "swiglu"
    qk_norm: bool = True
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        faults = []
        if self.head_width == 0:
            if self.width % self.heads:
                faults.append(
                    f"model.width={self.width} is not a multiple of model.heads={self.heads}: "
                    f"write width={2 * self.heads * max(1, self.width // (2 * self.heads))}"
                )
            object.__setattr__(self, "head_width", self.width // self.heads)
        if self.heads % self.kv_heads:
            faults.append(
                f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv_heads}: "
                f"write kv_heads={self.heads}"
            )
        if self.head_width < 2 or self.head_width % 2:
            faults.append(
                f"model.head_width={self.head_width} is not even: rotary positions turn pairs"
            )
        if self.activation not in ("swiglu", "relu2"):
            faults.append(f"model.activation={self.activation!r}: write swiglu or relu2")
        if faults:
            raise InputError(*faults)

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def mlp_matrices(self) -> int:
        return 3 if self.activation == "swiglu" else 2

    def matmul_parameters(self) -> int:
        """Weights a token is multiplied with in the blocks (no embeddings, no head)."""
        attention = self.width * (2 * self.query_width + 2 * self.key_width)
        return self.layers * (attention + self.mlp_matrices * self.width * self.mlp_width)

    def non_embedding_parameters(self) -> int:
        """Every parameter but the embeddings and the language head."""
        norms = self.layers * (2 * self.width + (2 * self.head_width if self.qk_norm else 0))
        return self.matmul_parameters() + norms + self.width

    def parameters(self) -> int:
        """Exact number of parameters with the language head."""
        tables = 1 if self.tie_embeddings else 2
        return self.non_embedding_parameters() + tables * self.vocab_size * self.width

    def forward_flops_per_token(self, mean_context: float, head: bool = True) -> float:
        """Floating-point operations of one token: 2 a weight, plus scores and sums of attention.

        `mean_context` is the number of cells a token attends to, on average.
        """
        attention = 4 * self.layers * self.query_width * mean_context
        language_head = 2 * self.width * self.vocab_size if head else 0
        return 2 * self.matmul_parameters() + attention + language_head

    def flops_per_token(self, mean_context: float | None = None) -> float:
        """Operations of a training step a token: the forward pass and twice that backwards."""
        if mean_context is None:
            mean_context = self.context / 2
        return 3 * self.forward_flops_per_token(mean_context)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
