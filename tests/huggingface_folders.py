"""Small models of random weights with tokenizers of their own, as transformers leaves them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend

from fourstage.interchange import load_model
from fourstage.tokenizer import Tokenizer
from tiny_models import logits_of
from tokenizer_vocabularies import gpt2

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
# family -> class of its config, its fields, class of the model.
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", _SIZES, "LlamaForCausalLM"),
    "qwen3": (
        "Qwen3Config",
        _SIZES | {"head_dim": 16, "tie_word_embeddings": True},
        "Qwen3ForCausalLM",
    ),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "GPT2LMHeadModel",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        _SIZES | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
        "Gemma3ForCausalLM",
    ),
    "mixtral": ("MixtralConfig", _SIZES | {"num_local_experts": 4}, "MixtralForCausalLM"),
}


def save_random(
    folder: Path, family: str = "llama", backend: Backend | None = None, **fields: Any
) -> Path:
    """Writes a model of `family` beside a tokenizer, without any token of a chat; the folder."""
    transformers = _transformers()
    backend = backend or gpt2()
    kind, usual, writer = MODELS[family]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    size = backend.get_vocab_size(with_added_tokens=True)
    config = getattr(transformers, kind)(**{"vocab_size": size, **usual, **special, **fields})
    torch.manual_seed(0)
    model = getattr(transformers, writer)(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty_like(weight).uniform_(-0.1, 0.1))
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    fast.save_pretrained(folder)
    return folder


def logits_apart(folder: Path, text: str) -> float:
    """The largest difference between the logits of transformers and those here, on a text."""
    transformers = _transformers()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    ids = reader(text, add_special_tokens=False).input_ids
    assert ids == Tokenizer.load(folder).encode(text) and len(ids) > 1
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    return float((expected - logits_of(load_model(folder), ids)).abs().max())


def _transformers() -> Any:
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    return transformers
