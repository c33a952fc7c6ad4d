"""Bytes that a training step holds: weights, gradients, optimiser state, activations, logits."""

from __future__ import annotations

from dataclasses import dataclass

from fourstage.model.config import ModelConfig

FP32 = 4
BF16 = 2
# objectives/logprobs.py keeps a micro-batch's log-probabilities for the backward pass up to so many
# numbers; beyond, it makes them again a chunk at a time (logits, log-softmax, gradient).
LOGITS_KEPT = 2**27
LOGITS_CHUNK = {"cpu": 2**19, "cuda": 2**26}
LOGITS_COPIES = 3
# No micro-batch is larger, whatever the memory.
_MOST_TOKENS = 2**26


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what holds them."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    others: float = 0.0

    @property
    def total(self) -> float:
        return sum(
            (
                self.weights,
                self.gradients,
                self.optimiser,
                self.activations,
                self.logits,
                self.others,
            )
        )


def activation_elements_per_token(config: ModelConfig) -> float:
    """Numbers a token leaves behind for the backward pass, in all layers.

    Counted on the flat model, which stores no padding and no [time, time] scores: norms, queries,
    keys and values before and after norm and rotation, attention's gathered input and its output,
    the MLP's three products; softmax keeps one number a head.
    """
    width, queries, keys = config.width, config.query_width, config.key_width
    turned = queries + keys
    attention = 2 * width + turned * (2 if config.qk_norm else 1)
    attention += turned + 2 * keys + queries * 2 + config.heads
    mlp = 2 * width + config.mlp_width * (4 if config.activation == "swiglu" else 2)
    return config.layers * (attention + mlp) + 3 * width


def logits_bytes(config: ModelConfig, micro_batch_tokens: float, device: str) -> float:
    """Bytes of logits and what is made of them, fp32."""
    every = micro_batch_tokens * config.vocab_size
    chunk = min(every, LOGITS_CHUNK["cpu" if device == "cpu" else "cuda"]) * LOGITS_COPIES
    return FP32 * (chunk + (every if every <= LOGITS_KEPT else 0))


def training_memory(
    config: ModelConfig,
    micro_batch_tokens: float,
    *,
    device: str = "cpu",
    shards: int = 1,
    models: int = 1,
    frozen_models: int = 0,
) -> Memory:
    """What one device holds while it trains.

    Weights, gradients and AdamW's two moments are fp32; on CUDA activations are bf16 and a bf16
    copy of the weights lives through a step. `shards` devices divide all that belongs to weights
    (fully sharded data parallel); the copy then is gathered for two blocks at a time. `models` are
    trained at a time (PPO: policy and critic), `frozen_models` only read (reference, reward model),
    in fp32 like all that is loaded.
    """
    params = config.parameters()
    width = BF16 if device == "cuda" else FP32
    cast = BF16 * params if device == "cuda" else 0
    if shards > 1:
        cast *= min(1.0, 1 / shards + 2 / config.layers)
    return Memory(
        weights=models * (FP32 * params / shards + cast),
        gradients=models * FP32 * params / shards,
        optimiser=models * 2 * FP32 * params / shards,
        activations=models * micro_batch_tokens * activation_elements_per_token(config) * width,
        logits=logits_bytes(config, micro_batch_tokens, device),
        others=frozen_models * FP32 * params / shards,
    )


def rollout_memory(
    config: ModelConfig, sequences: int, tokens: int, *, device: str = "cpu"
) -> float:
    """Bytes of the key-value cache of so many sequences of so many tokens."""
    width = BF16 if device == "cuda" else FP32
    return 2.0 * config.layers * config.key_width * sequences * tokens * width


def largest_micro_batch(
    config: ModelConfig, budget: float, *, device: str = "cpu", shards: int = 1, models: int = 1
) -> int:
    """Tokens that fit `budget` bytes in one forward and backward pass; 0 when not even one does.

    Memory rises with the tokens but for one place: just past it logits are made again and no
    longer kept. So the search lies beyond that place where the first micro-batch there fits, and
    below it otherwise.
    """

    def holds(tokens: int) -> bool:
        return _step(config, tokens, device, shards, models) <= budget

    unkept = LOGITS_KEPT // config.vocab_size + 1
    fits, beyond = (unkept, _MOST_TOKENS + 1) if holds(unkept) else (0, unkept)
    while beyond - fits > max(1, fits // 64):
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if holds(middle) else (fits, middle)
    return fits


def _step(config: ModelConfig, tokens: int, device: str, shards: int, models: int) -> float:
    return training_memory(config, tokens, device=device, shards=shards, models=models).total
