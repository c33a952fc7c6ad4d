"""Numbers that a token leaves behind for the backward pass, counted on the flat model, eager.

With `kernels` the C kernels of a CPU compute what they can (`fourstage.kernels`): they keep what
goes into them, and nothing of what is between.
"""

from __future__ import annotations

from fourstage.model.config import ModelConfig

FP32 = 4
# objectives/logprobs.py keeps a micro-batch's log-probabilities for the backward pass up to so many
# numbers; beyond, it makes them again a chunk at a time (logits, log-softmax, gradient).
LOGITS_KEPT = 2**27
_LOGITS_CHUNK = {"cpu": 2**19, "cuda": 2**26}
_LOGITS_COPIES = 3
_KERNEL_CELLS, _KERNEL_LOGITS = 512, 2**25
# Attention's rectangles hold so many cells for each real one (model/layout.py allows 1.18).
_PADDING = 1.06


def of_ends(config: ModelConfig, kernels: bool = False) -> float:
    """The last norm's input, what it multiplies its weights with, and what the head reads."""
    a_norm = 2 if config.norm == "rms" and not kernels else 1
    ends = config.width * (1 + a_norm * (2 if config.embedding_norm else 1))
    return ends + (config.rotary_width if config.positions == "rotary" else 0)


def of_norms(config: ModelConfig, kernels: bool = False) -> float:
    """What a block's norms read, and what the products that follow them read.

    RMSNorm is composed on a CPU without kernels, and keeps what it multiplies its weights with.
    """
    composed = config.norm == "rms" and not kernels
    kept = 3 if composed else 2
    if config.norm_placement == "around":
        kept += 2 if composed else 1
    shared = config.width if config.parallel_residual else 0
    return 2 * kept * config.width - shared


def of_attention(config: ModelConfig, kernels: bool = False) -> float:
    """Queries, keys and values before the norms and as attention reads them; what it returns,
    and that without padding. Softmax keeps one number a head where a kernel makes no scores."""
    queries, keys = config.query_width, config.key_width
    if kernels and has_kernel(config):
        return queries + 2 * keys + queries + config.heads
    normed = queries + keys
    if not kernels:
        normed += queries + 2 * keys + config.heads + config.kv_heads
    in_buckets = _PADDING * (2 * queries + 2 * keys + config.heads)
    scores = scores_kept(config) * config.heads * config.context
    return (normed if config.qk_norm else 0) + in_buckets + queries + scores


def has_kernel(config: ModelConfig) -> bool:
    """Whether the C kernel's formula of attention is the model's."""
    return not (scores_kept(config) or (config.qk_norm and config.qk_norm_whole))


def scores_kept(config: ModelConfig) -> int:
    """Numbers kept for each pair of cells and head, with documents as long as the context.

    ALiBi's distances keep a CPU from its fused kernel; no kernel caps scores, of which their
    tangents are kept too.
    """
    return 2 if config.attention_softcap else 1 if config.positions == "alibi" else 0


def of_mlp(config: ModelConfig, kernels: bool = False) -> float:
    """Gate, up, the activation of one and their product; without a gate, up and its activation.

    Of a mixture, each of the chosen experts has these, beside its copy of what it reads and gives.
    """
    gated = 3 if kernels and config.activation == "swiglu" and not config.experts else 4
    one = config.mlp_width * (gated if config.gated else 2)
    if not config.experts:
        return one
    return config.experts_per_token * (one + 2 * config.width) + config.experts


def of_turn(config: ModelConfig) -> float:
    """Gradients a token has while a block is walked back through, less what the block let go of.

    The share of the MLP's width is what was counted.
    """
    width = config.mlp_width * (config.experts_per_token if config.experts else 1)
    scores = scores_kept(config) * config.heads * config.context
    return 2 * config.width + width * (1.6 if config.gated else 1) + scores


def logits_bytes(
    config: ModelConfig, trained_cells: float, device: str, kernels: bool = False
) -> float:
    """Bytes of logits and what is made of them, fp32; a kernel turns them into their gradient."""
    every = trained_cells * config.vocab_size
    if kernels and not config.logit_softcap and config.logit_multiplier == 1.0:
        cells = max(64, min(_KERNEL_CELLS, _KERNEL_LOGITS // config.vocab_size))
        return FP32 * (every if every <= LOGITS_KEPT else cells * config.vocab_size)
    chunk = max(_LOGITS_CHUNK["cpu" if device == "cpu" else "cuda"], 64 * config.vocab_size)
    chunk = min(every, chunk)
    return FP32 * (every + chunk if every <= LOGITS_KEPT else _LOGITS_COPIES * chunk)
