"""What the published architectures are, as options of the one model.

Sizes, bases of rotary positions and numbers of experts are a checkpoint's, not a family's. Those of
windows are given as a rule over the layers, `window` and `full_every`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA: Mapping[str, Any] = {"qk_norm": False}
_GEMMA: Mapping[str, Any] = {
    "activation": "geglu",
    "norm_offset": 1.0,
    "norm_placement": "around",
    "embedding_multiplier": 0.0,
    "tie_embeddings": True,
}
_LAYER_NORMED: Mapping[str, Any] = {
    "qk_norm": False,
    "norm": "layer",
    "norm_eps": 1e-5,
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
}

# Options by which a family differs from the defaults of `ModelConfig`, a Llama with QK-norm.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_LLAMA, "norm_eps": 1e-5},
    # Mistral 7B v0.1; its successors see all.
    "mistral": {**_LLAMA, "norm_eps": 1e-5, "window": 4096},
    "qwen2": {**_LLAMA, "qkv_bias": True, "rope_theta": 1e6},
    "qwen3": {"rope_theta": 1e6},
    "gemma2": {
        **_GEMMA,
        "qk_norm": False,
        "window": 4096,
        "full_every": 2,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
    },
    "gemma3": {
        **_GEMMA,
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "window": 1024,
        "full_every": 6,
    },
    "olmo2": {"qk_norm_whole": True, "norm_placement": "after", "rope_theta": 5e5},
    "phi3": {**_LLAMA, "norm_eps": 1e-5, "window": 2047},
    "gpt2": {
        **_LAYER_NORMED,
        "activation": "gelu_tanh",
        "positions": "learned",
        "tie_embeddings": True,
    },
    "neox": {
        **_LAYER_NORMED,
        "activation": "gelu",
        "rope_fraction": 0.25,
        "parallel_residual": True,
    },
    "bloom": {
        **_LAYER_NORMED,
        "activation": "gelu_tanh",
        "positions": "alibi",
        "embedding_norm": True,
        "tie_embeddings": True,
    },
    "mixtral": {**_LLAMA, "norm_eps": 1e-5, "rope_theta": 1e6, "experts": 8},
    "qwen3_moe": {
        "rope_theta": 1e6,
        "experts": 128,
        "experts_per_token": 8,
    },
}


def sized(options: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The options of a model of so many layers: `window` and `full_every` become `windows`."""
    given = dict(options)
    window, full_every = given.pop("window", 0), given.pop("full_every", 0)
    return {"windows": windows(window, full_every, layers)} | given


def windows(window: int, full_every: int, layers: int) -> tuple[int, ...]:
    """A window a layer: of `window` cells, but each `full_every`-th layer sees all; 0: none does.

    A `window` of 0 is none at all.
    """
    if not window:
        return ()
    return tuple(
        0 if full_every and (layer + 1) % full_every == 0 else window for layer in range(layers)
    )
