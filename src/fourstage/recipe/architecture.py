"""The fields of a recipe that say what the model is: its sizes and its options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fourstage.recipe.data import Count, Fraction, NonNegative, Positive, PositiveInt, Section
from fourstage.recipe.numbers import Real, Whole

Family = Literal[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "olmo2",
    "phi3",
    "gpt2",
    "neox",
    "bloom",
    "mixtral",
    "qwen3_moe",
]


def _listed(value: Any) -> Any:
    """A list as the command line gives it: 512,512,0."""
    return value.strip("[] ").split(",") if isinstance(value, str) else value


class RopeScaling(Section):
    """How rotary angles change for a context longer than the one that was trained.

    `original_context` is that one; left out it is the context over the factor. What the numbers of
    each kind mean stands in `fourstage.model.config.RopeScaling`.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    factor: Annotated[Real, Field(ge=1)] = 1.0
    original_context: Count = 0
    low_frequency: Positive = 1.0
    high_frequency: Positive = 4.0
    beta_slow: Positive = 1.0
    beta_fast: Positive = 32.0
    attention_factor: NonNegative = 0.0
    short_factors: tuple[Positive, ...] = ()
    long_factors: tuple[Positive, ...] = ()


class Sizes(Section):
    """A target number of parameters, or any of the sizes."""

    params: Annotated[Whole, Field(ge=1000)] | None = None
    layers: PositiveInt | None = None
    width: PositiveInt | None = None
    heads: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    mlp_width: PositiveInt | None = None
    context: Annotated[Whole, Field(ge=8)] | None = None
    head_width: Annotated[Whole, Field(ge=2, multiple_of=2)] | None = None


class Architecture(Sizes):
    """Sizes and options; one left out is the parent model's, the family's, or that of a Llama with
    norms on queries and keys. Their meaning stands in `fourstage.model.config.ModelConfig`.

    Attributes:
        family: a published architecture whose options hold where none is given.
        window: cells that attention reaches back; 0 is all.
        full_every: each layer of this multiple sees all; 0: none does (Gemma 2: 2, Gemma 3: 6).
        windows: of each layer, where no such rule gives them.
        balance_loss: coefficient of the loss that keeps all experts in use; 0 is none.
        router_z_loss: coefficient of the loss that keeps the router's logits small; 0 is none.
    """

    family: Family | None = None
    rope_theta: Positive | None = None
    norm_eps: Positive | None = None
    activation: Literal["swiglu", "geglu", "relu2", "gelu", "gelu_tanh"] | None = None
    qk_norm: bool | None = None
    tie_embeddings: bool | None = None
    qk_norm_whole: bool | None = None
    positions: Literal["rotary", "learned", "alibi"] | None = None
    rope_fraction: Fraction | None = None
    rope_scaling: RopeScaling | None = None
    local_rope_theta: NonNegative | None = None
    window: Count | None = None
    full_every: Count | None = None
    windows: Annotated[list[Count], BeforeValidator(_listed)] | None = None
    norm: Literal["rms", "layer"] | None = None
    norm_offset: Real | None = None
    norm_placement: Literal["before", "after", "around"] | None = None
    parallel_residual: bool | None = None
    embedding_norm: bool | None = None
    attention_scale: NonNegative | None = None
    attention_softcap: NonNegative | None = None
    logit_softcap: NonNegative | None = None
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    embedding_multiplier: NonNegative | None = None
    logit_multiplier: Positive | None = None
    experts: Count | None = None
    experts_per_token: PositiveInt | None = None
    normalise_experts: bool | None = None
    balance_loss: NonNegative | None = None
    router_z_loss: NonNegative | None = None

    @property
    def routing_losses(self) -> tuple[float, float]:
        """The coefficients of the balancing loss and of the router's z-loss."""
        return self.balance_loss or 0.0, self.router_z_loss or 0.0
