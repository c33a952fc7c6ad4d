"""The one model of all four stages: it trains, generates, scores and values.

A decoder built from the options of `ModelConfig`, named as Hugging Face names it, on a flat batch
without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourstage.errors import InputError
from fourstage.model.attention import Attention
from fourstage.model.config import ModelConfig, RopeScaling
from fourstage.model.decoding import decode
from fourstage.model.experts import Mixture, Routing
from fourstage.model.initialisation import initialise
from fourstage.model.layout import Layout
from fourstage.model.mlp import MLP
from fourstage.model.norms import in_fp32, norm_of
from fourstage.model.positions import rotary_table, table_offsets

if TYPE_CHECKING:
    from fourstage.model.cache import KVCache

Head = Literal["language", "scalar"]
Recompute = Literal["none", "block"]
Part = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """Attention and an MLP on the residual stream; layer `layer`'s window is its own."""

    def __init__(self, config: ModelConfig, layer: int = 0):
        super().__init__()
        self.placement = config.norm_placement
        self.parallel = config.parallel_residual
        if config.norm_placement != "after":
            self.input_layernorm = norm_of(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm_of(config)
        if config.norm_placement == "around":
            self.pre_feedforward_layernorm = norm_of(config)
        if config.norm_placement != "before":
            self.post_feedforward_layernorm = norm_of(config)
        self.mlp = Mixture(config) if config.experts else MLP(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        layout: Layout,
        keep: tuple | None,
        routing: list[Routing] | None = None,
    ) -> Tensor:
        """[cells, width] -> [cells, width]; a mixture of experts fills a list given."""
        return self.residual(
            x,
            lambda read: self.self_attn(read, cos, sin, layout, keep),
            self.mlp if routing is None else partial(self.mlp, routing=routing),
        )

    def residual(self, x: Tensor, attention: Part, mlp: Part) -> Tensor:
        """The stream behind this block, whose two parts add to it what they make of it."""
        if self.parallel:
            mixed = attention(self.input_layernorm(x))
            return x + mixed + mlp(self.post_attention_layernorm(x))
        if self.placement == "before":
            x = x + attention(self.input_layernorm(x))
            return x + mlp(self.post_attention_layernorm(x))
        if self.placement == "after":
            x = x + self.post_attention_layernorm(attention(x))
            return x + self.post_feedforward_layernorm(mlp(x))
        x = x + self.post_attention_layernorm(attention(self.input_layernorm(x)))
        return x + self.post_feedforward_layernorm(mlp(self.pre_feedforward_layernorm(x)))


class Body(nn.Module):
    """Embeddings, blocks and the final norm: everything but the head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.multiplier = config.embedding_multiplier
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.embed_positions = (
            nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        )
        self.embed_norm = norm_of(config) if config.embedding_norm else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = norm_of(config)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """[cells] tokens at [cells] positions -> [cells, width]."""
        x = self.embed_tokens(tokens)
        if self.multiplier != 1.0:
            x = x * self.multiplier
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        return x if self.embed_norm is None else self.embed_norm(x)


class Transformer(nn.Module):
    """A decoder-only transformer with a language head or a scalar head (reward, value).

    Attributes:
        reward_mean, reward_std: what a reward model's raw scores are normalised with; floats kept
            beside the weights, not applied by `scores`.
        recompute: `block` keeps, of each block, its input alone for the backward pass, which makes
            the rest again: a third more operations, the same gradients.
        cos, sin: [context, rotary_width / 2] of the angles (`rotary_table`).
        local_cos, local_sin: those of layers with a window, where they have a base of their own.
    """

    cos: Tensor
    sin: Tensor
    local_cos: Tensor
    local_sin: Tensor

    def __init__(self, config: ModelConfig, head: Head = "language"):
        super().__init__()
        self.config = config
        self.head: Head = head
        self.model = Body(config)
        self.reward_mean = 0.0
        self.reward_std = 1.0
        self.recompute: Recompute = "none"
        if head == "scalar":
            self.score = nn.Linear(config.width, 1, bias=False)
        elif not config.tie_embeddings:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        cos, sin = rotary_table(config, "cpu")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        if config.local_rope_theta:
            cos, sin = rotary_table(config, "cpu", local=True)
            self.register_buffer("local_cos", cos, persistent=False)
            self.register_buffer("local_sin", sin, persistent=False)

    def forward(
        self,
        tokens: Tensor,
        layout: Layout,
        cache: KVCache | None = None,
        routing: list[Routing] | None = None,
    ) -> Tensor:
        """[cells] -> hidden states after the final norm, [cells, width].

        With a `cache`, document i also fills row i of it. In a mixture of experts, a list given as
        `routing` gets what the router of each layer did.
        """
        x = self.model.embed(tokens, layout.positions)
        angles = self.angles(layout)
        again = self.recompute == "block" and torch.is_grad_enabled() and cache is None
        for index, block in enumerate(self.model.layers):
            keep = None if cache is None else (cache, index)
            if again:
                x = _recomputed(block, x, *angles[index], layout, routing)
            else:
                x = block(x, *angles[index], layout, keep, routing)
        return self.model.norm(x)

    def angles(self, layout: Layout) -> list[tuple[Tensor, Tensor]]:
        """For each layer the cosines and sines of each cell, [cells, rotary_width / 2]."""
        positions = places = layout.positions
        offsets = table_offsets(self.config, layout.lengths, positions.device)
        if offsets is not None:
            places = positions + offsets[layout.document_ids]
        usual = (self.cos[places], self.sin[places])
        if not self.config.local_rope_theta:
            return [usual] * self.config.layers
        local = (self.local_cos[positions], self.local_sin[positions])
        layers = range(self.config.layers)
        return [local if self.config.window(layer) else usual for layer in layers]

    def decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """One new token a row against the cache: [batch] -> hidden states [batch, width]."""
        return decode(self, tokens, cache)

    @property
    def output_weight(self) -> Tensor:
        """[vocab, width] of the language head."""
        embedding = self.model.embed_tokens
        return embedding.weight if self.config.tie_embeddings else self.lm_head.weight

    @property
    def plain_head(self) -> Tensor | None:
        """[vocab, width], where `logits` is a product with it and nothing else."""
        c = self.config
        plain = c.logit_multiplier == 1.0 and not c.logit_softcap and self.head == "language"
        return self.output_weight if plain else None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., vocab]."""
        if self.config.logit_multiplier != 1.0:
            hidden = hidden * self.config.logit_multiplier
        logits = F.linear(hidden, self.output_weight)
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [...], the raw score or value: in fp32 under autocast too."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.score(in_fp32(hidden)).squeeze(-1)

    def initialise(self, seed: int, width_ratio: float = 1.0) -> Transformer:
        """Weights as a function of the seed alone (`fourstage.model.initialisation`)."""
        initialise(self, seed, width_ratio)
        return self

    def with_context(
        self, context: int, rope_scaling: RopeScaling | None, rope_theta: float | None = None
    ) -> Transformer:
        """The same weights at another context, to go on with or to train longer documents on.

        Args:
            rope_theta: another base of the angles (Xiong et al., *Effective Long-Context Scaling*,
                2023); None keeps it.

        Raises:
            InputError: positions are learned, and there are none for a longer context.
        """
        if self.config.positions == "learned" and context > self.config.context:
            raise InputError(
                f"model.context={context} is longer than the {self.config.context} positions that "
                f"the model has learned: write context={self.config.context}"
            )
        theta = rope_theta or self.config.rope_theta
        config = replace(self.config, context=context, rope_scaling=rope_scaling, rope_theta=theta)
        other, weights = Transformer(config, self.head), self.state_dict()
        if config.positions == "learned":
            table = "model.embed_positions.weight"
            weights[table] = weights[table][:context].clone()
        other.load_state_dict(weights, assign=True)
        other.reward_mean, other.reward_std = self.reward_mean, self.reward_std
        return other.to(self.cos.device)

    def with_scalar_head(self, seed: int) -> Transformer:
        """A copy of the body, a new scalar head: N(0, 1/sqrt(width + 1)) (Stiennon, 2020)."""
        scorer = Transformer(self.config, head="scalar")
        scorer.initialise(seed)
        scorer.model.load_state_dict(self.model.state_dict())
        return scorer.to(self.model.embed_tokens.weight.device)


def _recomputed(
    block: nn.Module,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: Layout,
    routing: list[Routing] | None,
) -> Tensor:
    """A block whose activations the backward pass makes again."""

    def run(x: Tensor) -> tuple[Tensor, list[Routing]]:
        own: list[Routing] = []
        return block(x, cos, sin, layout, None, None if routing is None else own), own

    # Only an adapter's dropout draws anything.
    draws = any(isinstance(part, nn.Dropout) and part.p > 0 for part in block.modules())
    x, own = checkpoint(run, x, use_reentrant=False, preserve_rng_state=draws)
    if routing is not None:
        routing.extend(own)
    return x
