"""Gemma 2 and the text part of Gemma 3."""

from __future__ import annotations

from typing import Any

from fourstage.interchange.families import rope, traits, windows
from fourstage.interchange.families.family import Family, like_llama, llama_defaults

_GEMMA: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_GEMMA_OPTIONS = {"norm_offset": 1.0, "norm_placement": "around"}

GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    "Gemma2ForSequenceClassification",
    (
        *like_llama(rope.rotary(), act="hidden_activation", attention_bias=traits.biases()),
        windows.alternating(2),
        traits.query_scale(),
        traits.scaled_embeddings(),
        traits.numbers(
            attention_softcap="attn_logit_softcapping",
            logit_softcap="final_logit_softcapping",
        ),
    ),
    {"qk_norm": False, **_GEMMA_OPTIONS},
    llama_defaults(
        **_GEMMA,
        vocab_size=256000,
        max_position_embeddings=8192,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    refused=("use_bidirectional_attention",),
)

GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    "Gemma3TextForSequenceClassification",
    (
        *like_llama(
            rope.local_and_global(), act="hidden_activation", attention_bias=traits.biases()
        ),
        windows.alternating(6),
        traits.query_scale(),
        traits.scaled_embeddings(),
        traits.numbers(logit_softcap="final_logit_softcapping"),
    ),
    {"qk_norm": True, **_GEMMA_OPTIONS},
    llama_defaults(**_GEMMA, vocab_size=262208, max_position_embeddings=131072),
    # transformers takes a cap on scores from the config and does not apply it.
    refused=("use_bidirectional_attention", "attn_logit_softcapping"),
)
