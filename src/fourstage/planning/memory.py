"""Bytes that a training step holds at its peak: weights, gradients, optimiser state, activations.

A step has four places where memory can be highest, and the estimate is the highest of them:

    the loss     every activation is kept; logits are made, and the head's gradient
    the turn     every activation is kept; the last block's gradients are being made
    the end      every gradient is there, and no activation
    the update   what Muon makes of the gradients

Counted on the flat model, eager, and held against what the allocator counts (tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fourstage.model.config import ModelConfig
from fourstage.planning import activations
from fourstage.planning.activations import FP32, LOGITS_KEPT

Recompute = Literal["off", "block"]

BF16 = 2
# Numbers a weight of the momentum that Muon keeps, and bytes of both moments in codes of 8 bits
# with a scale every 256 of them.
_MUON = FP32
# training/optimisers/muon.py makes so many numbers orthogonal at a time, and this many of each.
_MUON_STACK, _MUON_COPIES = 2**24, 4.75
_EIGHT_BIT = 2 * (1 + FP32 / 256)
_ADAMW = 2 * FP32
# Gradients of several processes are summed in flat buckets of at most so many (parallel/group.py).
_BUCKET = 16_000_000
# No micro-batch is larger, whatever the memory.
_MOST_TOKENS = 2**26


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step, by what holds them.

    Attributes:
        others: models that are only read.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    others: float = 0.0

    @property
    def total(self) -> float:
        return (
            self.weights
            + self.gradients
            + self.optimiser
            + self.activations
            + self.logits
            + self.others
        )


def optimiser_bytes(config: ModelConfig, name: str = "adamw") -> float:
    """Bytes of an optimiser's state for every weight of a language model.

    AdamW keeps two moments in fp32. Muon keeps one for the matrices inside the blocks, and is AdamW
    for the rest; 8-bit AdamW keeps codes of a byte for these and the head.
    """
    params, matrices = config.parameters(), float(config.matmul_parameters())
    if config.experts:
        matrices *= config.parameters() / config.active_parameters()
    if name == "muon":
        return _ADAMW * (params - matrices) + _MUON * matrices
    if name == "adamw8bit":
        if not config.tie_embeddings:
            matrices += config.vocab_size * config.width
        return _ADAMW * (params - matrices) + _EIGHT_BIT * matrices
    return float(_ADAMW * params)


@dataclass(frozen=True)
class Step:
    """What a step is beside its model and its micro-batch.

    Attributes:
        device: "cpu", "cuda" or "mps".
        replicas: processes that hold the same, whose gradients are summed in flat buckets.
        shards: devices that divide weights, gradients and optimiser state (fully sharded data
            parallel, Zhao et al., 2023); what a block needs is gathered while it is at work.
        tensor: devices that divide every matrix, and with it what is between two of them
            (Shoeybi et al., Megatron-LM, 2019).
        sequence: whether these also divide what norms and the residual stream hold
            (Korthikanti et al., 2022).
        workers: threads of a CPU with gradients of their own, each on its part of a micro-batch.
        kernels: whether a CPU computes with the C kernels.
        optimiser: its name in the recipe.
        recompute: whether blocks keep their input alone.
        models: trained at a time (PPO: policy and critic).
        frozen_models: only read, in fp32 like all that is loaded (reference, reward model).
        scores: whether the head is one number wide: no logits.
        accumulates: whether a step is several micro-batches, so that gradients of all weights are
            there while the second one is computed.
        trained_share: share of the weights that are trained; the others have no gradient.
        average: whether a moving average of the weights is kept.
        weight_bytes: of all that is held for a weight of the model: less than 4 where frozen ones
            are held in fewer bits.
        has_adapter: whether frozen matrices are computed with one by one, each beside its adapter.
        quantised_share: share of the weights that is held in codes: a product makes its matrix of
            them and lets it go.
    """

    device: str = "cpu"
    replicas: int = 1
    shards: int = 1
    tensor: int = 1
    sequence: bool = False
    workers: int = 1
    kernels: bool = False
    optimiser: str = "adamw"
    recompute: Recompute = "off"
    models: int = 1
    frozen_models: int = 0
    scores: bool = False
    accumulates: bool = True
    trained_share: float = 1.0
    average: bool = False
    weight_bytes: float = FP32
    has_adapter: bool = False
    quantised_share: float = 0.0

    @property
    def width(self) -> int:
        """Bytes of a number that is computed."""
        return BF16 if self.device == "cuda" else FP32


def step_memory(
    config: ModelConfig, cells: float, step: Step, trained_cells: float | None = None
) -> Memory:
    """What one device holds at the peak of a step on micro-batches of `cells` cells.

    Args:
        trained_cells: those with a loss, for which logits are made; all unless said.
    """
    trained_cells = cells if trained_cells is None else trained_cells
    kept, working, turn = _activations(config, cells, step)
    # What the head read and the last norm made is let go of before the last block is walked back.
    ends = cells * config.width * step.width / (step.tensor if step.sequence else 1)
    copies = step.workers * _joined_weights(config, step)
    whole, single = _gradients(config, step)
    logits, head = _logits(config, trained_cells, step)
    before = max(step.workers * whole if step.accumulates else 0.0, head)
    moments = (
        # gradients, activations, logits
        (before, kept + copies, logits + head),
        (before, kept + working + turn + copies + single - ends, 0.0),
        (step.workers * whole, turn + copies / config.layers + single, 0.0),
        (whole, _orthogonalising(config, step), 0.0),
    )
    gradients, activations, in_logits = max(moments, key=sum)
    return Memory(
        weights=step.models * _weights(config, step),
        gradients=step.models * gradients,
        optimiser=step.models * state_bytes(config, step),
        activations=step.models * activations,
        logits=in_logits,
        others=step.frozen_models * FP32 * config.parameters(),
    )  # fmt: skip


def state_bytes(config: ModelConfig, step: Step) -> float:
    """Bytes of the optimiser's state for one model."""
    share = step.trained_share * _parameters(config, step) / config.parameters()
    every = optimiser_bytes(config, step.optimiser)
    if step.has_adapter:  # matrices, which Muon leaves to AdamW
        each = _EIGHT_BIT if step.optimiser == "adamw8bit" else _ADAMW
        every = each * config.parameters()
    return share * every / step.shards


def _logits(config: ModelConfig, trained_cells: float, step: Step) -> tuple[float, float]:
    """Bytes of logits, and of the gradient of the head; each worker has its own."""
    if step.scores:
        return 0.0, 0.0
    share = (
        activations.logits_bytes(config, trained_cells / step.workers, step.device, step.kernels)
        / step.tensor
    )
    rows = 0 if step.has_adapter else config.vocab_size
    head = FP32 * rows * config.width / step.tensor / step.shards
    return step.workers * share, step.workers * head


def _orthogonalising(config: ModelConfig, step: Step) -> float:
    """Bytes of what Muon makes of the matrices of one shape that it takes together."""
    if step.optimiser != "muon" or step.has_adapter:
        return 0.0
    one = config.width * config.mlp_width
    alike = one * config.layers * (config.experts or 1) * (2 if config.gated else 1)
    return _MUON_COPIES * step.width * max(one, min(alike, _MUON_STACK))


def _activations(config: ModelConfig, cells: float, step: Step) -> tuple[float, float, float]:
    """Bytes kept from the forward pass; made again for a block; gradients of a block."""
    known = (config, step.kernels)
    inside = (activations.of_attention(*known) + activations.of_mlp(*known)) / step.tensor
    outside = activations.of_norms(*known)
    ends, stream = activations.of_ends(*known), float(config.width)
    if step.sequence:
        outside, ends, stream = (each / step.tensor for each in (outside, ends, stream))
    size = cells * step.width
    turn = size * activations.of_turn(config) / step.tensor
    if step.recompute == "block":
        return size * (config.layers * stream + ends), size * (inside + outside - stream), turn
    return size * (config.layers * (inside + outside) + ends), 0.0, turn


def _joined_weights(config: ModelConfig, step: Step) -> float:
    """Bytes of the matrices that are joined for one product and kept for the backward pass.

    In bf16 they are the copies that `_weights` counts.
    """
    if step.device == "cuda" or step.has_adapter:
        return 0.0
    joined = config.width * (config.query_width + 2 * config.key_width)
    if config.gated and not config.experts:
        joined += 2 * config.width * config.mlp_width
    layers = 1 if step.recompute == "block" else config.layers
    return FP32 * layers * joined / step.tensor


def own_weights(config: ModelConfig, step: Step) -> float:
    """Bytes of one model's fp32 weights and their moving average, from the first step to the last.

    Other weights live through a step alone: copies in bf16, and what sharding gathers.
    """
    averaged = FP32 * step.trained_share if step.average else 0.0
    return (step.weight_bytes + averaged) * _parameters(config, step) / step.shards


def _parameters(config: ModelConfig, step: Step) -> float:
    """Weights of one model; one that scores has a row for a head."""
    count = config.parameters()
    if step.scores:
        count += config.width - (0 if config.tie_embeddings else config.vocab_size * config.width)
    return count / step.tensor


def _weights(config: ModelConfig, step: Step) -> float:
    """fp32 weights, their copy in bf16 on CUDA, and what sharding gathers: two blocks and the
    tables."""
    params, own = _parameters(config, step), own_weights(config, step)
    if step.shards > 1:
        inside = config.non_embedding_parameters() / step.tensor
        gathered = min(1.0, 2 / config.layers) * inside + params - inside
        return own + step.width * min(params, gathered)
    copied = params * (1 - step.quantised_share)
    return own + (BF16 * copied if step.device == "cuda" else 0)


def _gradients(config: ModelConfig, step: Step) -> tuple[float, float]:
    """Bytes of all gradients, and of those on their way: of a block's largest product, of a block
    and the tables before sharding divides them, or of a bucket that is summed."""
    params = step.trained_share * _parameters(config, step)
    inside = step.trained_share * config.non_embedding_parameters() / step.tensor
    block = inside / config.layers
    if step.shards > 1:
        return FP32 * params / step.shards, FP32 * (block + params - inside)
    product = config.width * config.mlp_width * (2 if config.gated else 1) / step.tensor
    bucket = min(params, _BUCKET) if step.replicas > 1 else 0.0
    return FP32 * params, FP32 * max(bucket, min(block, step.trained_share * product))


def training_memory(config: ModelConfig, micro_batch_tokens: float, **step: Any) -> Memory:
    """`step_memory` with the fields of `Step` as keywords."""
    return step_memory(config, micro_batch_tokens, Step(**step))


def rollout_memory(
    config: ModelConfig, sequences: int, tokens: int, *, device: str = "cpu"
) -> float:
    """Bytes of the key-value cache of so many sequences of so many tokens."""
    width = BF16 if device == "cuda" else FP32
    return 2.0 * config.layers * config.key_width * sequences * tokens * width


def largest_micro_batch(config: ModelConfig, budget: float, step: Step = Step()) -> int:
    """Tokens that fit `budget` bytes in one forward and backward pass; 0 when not even one does.

    Memory rises with the tokens but for one place: just past it logits are made again and no
    longer kept. So the search lies beyond that place where the first micro-batch there fits, and
    below it otherwise.
    """

    def holds(tokens: int) -> bool:
        return step_memory(config, tokens, step).total <= budget

    unkept = LOGITS_KEPT // config.vocab_size + 1
    fits, beyond = (unkept, _MOST_TOKENS + 1) if holds(unkept) else (0, unkept)
    while beyond - fits > max(1, fits // 64):
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if holds(middle) else (fits, middle)
    return fits
