"""Llama and its near relatives: Mistral, Qwen2, Qwen3, OLMo 2 and Phi-3."""

from __future__ import annotations

from fourstage.interchange.families import rope, traits, windows
from fourstage.interchange.families.family import Family, like_llama, llama_defaults
from fourstage.interchange.families.naming import GATE_UP, QKV, Names

_QWEN = {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}
_QWEN_WINDOW = {"sliding_window": 4096, "max_window_layers": 28}

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    (
        *like_llama(rope.rotary(), attention_bias=traits.biases()),
        traits.flags(mlp_bias="mlp_bias"),
        windows.nowhere(),
    ),
    {"qk_norm": False},
    llama_defaults(),
    refused=("use_sliding_window",),
)

QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    "Qwen3ForSequenceClassification",
    (*like_llama(rope.rotary(), attention_bias=traits.biases()), windows.some()),
    {"qk_norm": True},
    llama_defaults(**_QWEN, **_QWEN_WINDOW, head_dim=128, max_position_embeddings=32768),
)

MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    "MistralForSequenceClassification",
    (*like_llama(rope.rotary()), windows.everywhere()),
    {"qk_norm": False},
    llama_defaults(
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        sliding_window=4096,
    ),
    refused=("attention_bias", "mlp_bias", "layer_types"),
)

QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    "Qwen2ForSequenceClassification",
    (*like_llama(rope.rotary(), has_head_width=False), windows.some()),
    {"qk_norm": False, "qkv_bias": True},
    llama_defaults(**_QWEN, **_QWEN_WINDOW, max_position_embeddings=32768),
)

OLMO2 = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    "Olmo2ForSequenceClassification",
    (
        *like_llama(rope.rotary(), has_head_width=False, attention_bias=traits.biases()),
        windows.nowhere(),
    ),
    {"qk_norm": True, "qk_norm_whole": True, "norm_placement": "after"},
    llama_defaults(vocab_size=50304, rms_norm_eps=1e-5),
)

PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    "Phi3ForSequenceClassification",
    (
        *like_llama(
            rope.rotary(kinds=("longrope",), fraction=1.0, original_outside=True),
            has_head_width=False,
        ),
        windows.everywhere(),
        traits.constants(resid_pdrop=0.0, embd_pdrop=0.0),
    ),
    {"qk_norm": False},
    llama_defaults(
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        sliding_window=None,
    ),
    refused=("attention_bias", "mlp_bias"),
    names=Names(fused={"self_attn.qkv_proj": QKV, "mlp.gate_up_proj": GATE_UP}),
)
