"""GPT-2, GPT-NeoX with Pythia, and BLOOM: LayerNorm, biases, fused projections."""

from __future__ import annotations

from fourstage.interchange.families import rope, traits
from fourstage.interchange.families.family import DTYPE, LENGTH, TIES, UNUSED, Family, shape
from fourstage.interchange.families.naming import QKV, Names

_LAYER_NORM = {"norm": "layer", "qk_norm": False, "mlp_bias": True}
_MEGATRON_MLP = {"mlp.up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h"}

GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    "GPT2ForSequenceClassification",
    (
        traits.sizes(
            vocab_size="vocab_size",
            width="n_embd",
            layers="n_layer",
            heads="n_head",
            context="n_positions",
        ),
        traits.equal_kv_heads("n_head"),
        traits.four_times_as_wide("n_embd", "n_inner"),
        traits.activation("activation_function", traits.PLAIN),
        traits.numbers(norm_eps="layer_norm_epsilon"),
        traits.scaled_scores(),
        DTYPE,
        TIES,
        traits.constants(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        UNUSED,
    ),
    {**_LAYER_NORM, "positions": "learned", "qkv_bias": True, "output_bias": True},
    {
        "vocab_size": 50257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    },
    {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    refused=("scale_attn_by_inverse_layer_idx", "add_cross_attention"),
    names=Names(
        body="transformer",
        blocks="h",
        ends={
            "model.embed_tokens": "transformer.wte",
            "model.embed_positions": "transformer.wpe",
            "model.norm": "transformer.ln_f",
        },
        modules={
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
            "self_attn.o_proj": "attn.c_proj",
            "mlp.up_proj": "mlp.c_fc",
            "mlp.down_proj": "mlp.c_proj",
        },
        fused={"attn.c_attn": QKV},
        transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        gated=False,
    ),
)

NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    "GPTNeoXForSequenceClassification",
    (
        shape(),
        traits.equal_kv_heads(traits.HEADS),
        traits.activation("hidden_act", traits.PLAIN),
        traits.sizes(context=LENGTH),
        traits.numbers(norm_eps="layer_norm_eps"),
        rope.rotary(fraction=0.25, base_name="rotary_emb_base", fraction_name="rotary_pct"),
        traits.flags(parallel_residual="use_parallel_residual"),
        traits.biases(),
        DTYPE,
        TIES,
        traits.constants(attention_dropout=0.0, hidden_dropout=0.0),
        UNUSED,
    ),
    _LAYER_NORM,
    {
        "vocab_size": 50432,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    names=Names(
        body="gpt_neox",
        ends={
            "model.embed_tokens": "gpt_neox.embed_in",
            "model.norm": "gpt_neox.final_layer_norm",
            "lm_head": "embed_out",
        },
        modules={"self_attn.o_proj": "attention.dense", **_MEGATRON_MLP},
        fused={"attention.query_key_value": QKV},
        by_head=True,
        gated=False,
    ),
)

BLOOM = Family(
    "bloom",
    "BloomForCausalLM",
    "BloomForSequenceClassification",
    (
        traits.sizes(
            vocab_size="vocab_size",
            width="hidden_size",
            layers="n_layer",
            heads="n_head",
            context="seq_length",
        ),
        traits.equal_kv_heads("n_head"),
        traits.four_times_as_wide("hidden_size"),
        traits.numbers(norm_eps="layer_norm_epsilon"),
        DTYPE,
        TIES,
        traits.constants(attention_dropout=0.0, hidden_dropout=0.0),
        UNUSED,
    ),
    {
        **_LAYER_NORM,
        "positions": "alibi",
        "qkv_bias": True,
        "output_bias": True,
        "activation": "gelu_tanh",
        "embedding_norm": True,
    },
    {
        "vocab_size": 250880,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 8,
        # Not a field of transformers, whose ALiBi has no longest context: BLOOM's own.
        "seq_length": 2048,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    {
        "n_embed": "hidden_size",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    },
    refused=("apply_residual_connection_post_layernorm",),
    names=Names(
        body="transformer",
        blocks="h",
        ends={
            "model.embed_tokens": "transformer.word_embeddings",
            "model.embed_norm": "transformer.word_embeddings_layernorm",
            "model.norm": "transformer.ln_f",
        },
        modules={"self_attn.o_proj": "self_attention.dense", **_MEGATRON_MLP},
        fused={"self_attention.query_key_value": QKV},
        by_head=True,
        gated=False,
    ),
)
