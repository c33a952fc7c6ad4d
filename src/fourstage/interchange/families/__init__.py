"""The Hugging Face architectures that a folder may be of: what each fixes and how it says the rest.

Facts about a family are those of its class in transformers and of its checkpoints on the hub.
Rates of dropout are read as none: nothing here drops anything out.
"""

from __future__ import annotations

from fourstage.interchange.families.family import Family
from fourstage.interchange.families.gemma import GEMMA2, GEMMA3
from fourstage.interchange.families.gpt import BLOOM, GPT2, NEOX
from fourstage.interchange.families.llama import LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3
from fourstage.interchange.families.mixtures import MIXTRAL, QWEN3_MOE

# A model is saved as the first one that it fits: the plainest come first.
FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "olmo2": OLMO2,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "phi3": PHI3,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "gpt2": GPT2,
    "neox": NEOX,
    "bloom": BLOOM,
}

__all__ = ["FAMILIES", "Family"]
