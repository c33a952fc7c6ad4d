"""Mixtures of experts: Mixtral and Qwen3-MoE."""

from __future__ import annotations

from fourstage.interchange.families import rope, traits, windows
from fourstage.interchange.families.family import Family, like_llama, llama_defaults
from fourstage.interchange.families.naming import Names

_TRAINING = traits.constants(output_router_logits=False, router_aux_loss_coef=0.001)


MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    "MixtralForSequenceClassification",
    (
        *like_llama(rope.rotary(1e6), mlp=False),
        traits.experts("num_local_experts", "intermediate_size"),
        windows.everywhere(),
        _TRAINING,
    ),
    {"qk_norm": False, "normalise_experts": True},
    llama_defaults(
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        sliding_window=None,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    refused=("attention_bias", "mlp_bias"),
    names=Names(
        modules={"mlp.gate": "block_sparse_moe.gate"},
        mixture="block_sparse_moe",
        expert=("w1", "w3", "w2"),
    ),
)

QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    "Qwen3MoeForSequenceClassification",
    (
        *like_llama(rope.rotary(), attention_bias=traits.biases(), mlp=False),
        traits.experts("num_experts", "moe_intermediate_size"),
        traits.flags(normalise_experts="norm_topk_prob"),
        windows.everywhere("use_sliding_window"),
        # Every layer has experts: the width of those that would not is never used.
        traits.constants(intermediate_size=6144, decoder_sparse_step=1, mlp_only_layers=[]),
        _TRAINING,
    ),
    {"qk_norm": True},
    llama_defaults(
        vocab_size=151936,
        hidden_size=2048,
        num_hidden_layers=24,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        sliding_window=4096,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
    {"num_local_experts": "num_experts"},
)
