"""The shape of a model, and what it costs: exact parameter and FLOP counts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fourstage.errors import InputError, nearest

Activation = Literal["swiglu", "geglu", "relu2", "gelu", "gelu_tanh"]
Positions = Literal["rotary", "learned", "alibi"]
Norm = Literal["rms", "layer"]
NormPlacement = Literal["before", "after", "around"]
RopeKind = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": ("swiglu", "geglu", "relu2", "gelu", "gelu_tanh"),
    "positions": ("rotary", "learned", "alibi"),
    "norm": ("rms", "layer"),
    "norm_placement": ("before", "after", "around"),
}
# Activations whose MLP multiplies with a gate: three matrices instead of two.
GATED = ("swiglu", "geglu")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are changed for contexts longer than `original_context`.

    Attributes:
        kind: `linear` (Chen et al., 2023), `dynamic` (NTK by length, 2023), `yarn` (Peng et al.,
            2023), `llama3` (Llama 3.1), `longrope` (Ding et al., 2024: a factor for each pair,
            by the length of a document).
        factor: context over `original_context`.
        low_frequency, high_frequency: of `llama3`: turns in the original context below which a
            pair is stretched by the whole factor, and above which not at all.
        beta_slow, beta_fast: the same two of `yarn`.
        attention_factor: of `yarn` and `longrope`: cosines and sines are multiplied by it; 0 takes
            the paper's.
        short_factors, long_factors: of `longrope`, head_width / 2 each.
    """

    kind: RopeKind
    factor: float = 1.0
    original_context: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    attention_factor: float = 0.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, built from options; the defaults are a Llama with QK-norm.

    Attributes whose meaning is not in their name:

    Attributes:
        kv_heads: heads of keys and values, each shared by heads / kv_heads queries.
        head_width: numbers a head; 0 is width / heads.
        rope_fraction: share of a head's numbers that are turned (GPT-NeoX 0.25), the first ones.
        local_rope_theta: base of the layers that have a window; 0 is `rope_theta` (Gemma 3), and
            then `rope_scaling` holds for them too.
        windows: cells that each layer's attention reaches back, its own included, one a layer; 0
            is all. Empty: all layers see all.
        norm: `rms` (Zhang and Sennrich, 2019), `layer` with bias (Ba et al., 2016).
        norm_offset: added to the weights of RMSNorm (Gemma 1), which then start at 0.
        norm_placement: `before` attention and MLP (GPT-2, Llama), `after` them (OLMo 2), `around`
            them (Gemma 2).
        parallel_residual: attention and MLP read the same stream and are added together (GPT-NeoX).
        embedding_norm: a norm on the embeddings (BLOOM).
        qk_norm: a norm on queries and keys; `qk_norm_whole` takes all heads together (OLMo 2), else
            each head by itself (Qwen3).
        attention_scale: factor on scores; 0 is head_width ** -0.5.
        attention_softcap, logit_softcap: `cap * tanh(x / cap)` on scores and on logits; 0 is none.
        qkv_bias, output_bias, mlp_bias: of the projections to queries, keys and values; out of
            attention; of the MLP.
        embedding_multiplier: factor on embeddings; 0 is sqrt(width) (Gemma).
        logit_multiplier: factor on logits.
        experts: of each MLP (mixture of experts); 0 is a plain MLP. `mlp_width` is an expert's.
        experts_per_token: how many a token is sent to.
        normalise_experts: whether the weights of the chosen experts are made to sum to 1.
        family: the Hugging Face architecture that the model is saved as; empty is the first that
            its options fit (`fourstage.interchange.configs`).

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
    qk_norm_whole: bool = False
    positions: Positions = "rotary"
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float = 0.0
    windows: tuple[int, ...] = ()
    norm: Norm = "rms"
    norm_offset: float = 0.0
    norm_placement: NormPlacement = "before"
    parallel_residual: bool = False
    embedding_norm: bool = False
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    experts: int = 0
    experts_per_token: int = 2
    normalise_experts: bool = True
    family: str = ""

    def __post_init__(self) -> None:
        faults = []
        if self.head_width == 0:
            if self.width % self.heads:
                faults.append(
                    f"model.width={self.width} is not a multiple of model.heads={self.heads}: "
                    f"write width={2 * self.heads * max(1, self.width // (2 * self.heads))}"
                )
            object.__setattr__(self, "head_width", self.width // self.heads)
        if self.attention_scale == 0:
            object.__setattr__(self, "attention_scale", self.head_width**-0.5)
        if self.embedding_multiplier == 0:
            object.__setattr__(self, "embedding_multiplier", self.width**0.5)
        object.__setattr__(self, "windows", tuple(self.windows))
        if self.heads % self.kv_heads:
            faults.append(
                f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv_heads}: "
                f"write kv_heads={self.heads}"
            )
        if self.positions == "rotary" and (self.head_width < 2 or self.rotary_width % 2):
            faults.append(
                f"model.head_width={self.head_width} is not even: rotary positions turn pairs"
            )
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                hint = nearest(value, choices) or f": write one of {', '.join(choices)}"
                faults.append(f"model.{name}={value!r} is not known{hint}")
        if self.windows and len(self.windows) != self.layers:
            faults.append(
                f"model.windows names {len(self.windows)} layers and the model has {self.layers}: "
                "write one window a layer, 0 for all"
            )
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            faults.append(
                f"model.experts_per_token={self.experts_per_token} of model.experts="
                f"{self.experts}: write 1 to {self.experts}"
            )
        if self.experts and self.mlp_bias:
            faults.append("model.mlp_bias: experts have no biases: write mlp_bias=false")
        if self.parallel_residual and self.norm_placement != "before":
            faults.append(
                f"model.parallel_residual with model.norm_placement={self.norm_placement}: its "
                "two parts read one stream: write norm_placement=before"
            )
        faults += self._scaling_faults()
        if faults:
            raise InputError(*faults)

    def _scaling_faults(self) -> list[str]:
        """What `rope_scaling` lacks."""
        scaling = self.rope_scaling
        if scaling is None:
            return []
        faults = []
        if scaling.factor < 1:
            faults.append(
                f"model.rope_scaling.factor={scaling.factor:g} is below 1: write the context over "
                "the original context"
            )
        half = self.rotary_width // 2
        lists = (scaling.short_factors, scaling.long_factors)
        if scaling.kind == "longrope" and any(len(factors) != half for factors in lists):
            faults.append(
                f"model.rope_scaling names {len(lists[0])} short and {len(lists[1])} long factors: "
                f"write {half} of each, one a pair"
            )
        return faults

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def rotary_width(self) -> int:
        """Numbers of a head that are turned; 0 without rotary positions."""
        return int(self.head_width * self.rope_fraction) if self.positions == "rotary" else 0

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    @property
    def mlp_matrices(self) -> int:
        return 3 if self.gated else 2

    def window(self, layer: int) -> int:
        """Cells that a layer's attention reaches back; 0 is all."""
        return self.windows[layer] if self.windows else 0

    def matmul_parameters(self) -> int:
        """Weights a token is multiplied with in the blocks (no embeddings, no head)."""
        return self.layers * (self._attention_matrices() + self._mlp_matrices_of_a_token())

    def _attention_matrices(self) -> int:
        return self.width * (2 * self.query_width + 2 * self.key_width)

    def _mlp_matrices_of_a_token(self) -> int:
        one = self.mlp_matrices * self.width * self.mlp_width
        return one * self.experts_per_token + self.width * self.experts if self.experts else one

    def _mlp_parameters(self) -> int:
        one = self.mlp_matrices * self.width * self.mlp_width
        if self.mlp_bias:
            one += (self.mlp_matrices - 1) * self.mlp_width + self.width
        return one * self.experts + self.width * self.experts if self.experts else one

    def _attention_parameters(self) -> int:
        count = self._attention_matrices()
        if self.qkv_bias:
            count += self.query_width + 2 * self.key_width
        if self.output_bias:
            count += self.width
        if self.qk_norm:
            queries, keys = self.query_width, self.key_width
            count += queries + keys if self.qk_norm_whole else 2 * self.head_width
        return count

    def norm_parameters(self) -> int:
        """Of one norm over the width."""
        return self.width * (2 if self.norm == "layer" else 1)

    def non_embedding_parameters(self) -> int:
        """Every parameter but the tables of tokens and positions and the language head."""
        norms = (4 if self.norm_placement == "around" else 2) * self.norm_parameters()
        ends = self.norm_parameters() * (2 if self.embedding_norm else 1)
        block = self._attention_parameters() + self._mlp_parameters() + norms
        return self.layers * block + ends

    def parameters(self) -> int:
        """Exact number of parameters with the language head."""
        tables = self.vocab_size * (1 if self.tie_embeddings else 2)
        tables += self.context if self.positions == "learned" else 0
        return self.non_embedding_parameters() + tables * self.width

    def active_parameters(self) -> int:
        """Those a token meets: of a mixture's experts only the chosen ones are counted."""
        if not self.experts:
            return self.parameters()
        expert = (self._mlp_parameters() - self.width * self.experts) // self.experts
        idle = (self.experts - self.experts_per_token) * expert
        return self.parameters() - self.layers * idle

    def forward_flops_per_token(self, mean_context: float, head: bool = True) -> float:
        """Floating-point operations of one token: 2 a weight, plus scores and sums of attention.

        `mean_context` is the number of cells a token attends to, on average, where no window cuts
        it: of a document of n tokens (n + 1) / 2.
        """
        seen = sum(_seen(mean_context, self.window(layer)) for layer in range(self.layers))
        attention = 4 * self.query_width * seen
        language_head = 2 * self.width * self.vocab_size if head else 0
        return 2 * self.matmul_parameters() + attention + language_head

    def flops_per_token(self, mean_context: float | None = None) -> float:
        """Operations of a training step a token: the forward pass and twice that backwards."""
        if mean_context is None:
            mean_context = self.context / 2
        return 3 * self.forward_flops_per_token(mean_context)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _seen(mean_context: float, window: int) -> float:
    """Cells a token attends to, on average over a document, through a window (0: none)."""
    tokens = 2 * mean_context - 1
    if not window or tokens <= window:
        return mean_context
    return (window * (window + 1) / 2 + (tokens - window) * window) / tokens
