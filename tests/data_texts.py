"""A small text of our own: enough words and sentences for preparation to have something to do."""

from __future__ import annotations

import random

_NAMES = ("Ada", "Bela", "Cora", "Dino", "Edda", "Falk", "Gerd", "Hanna")
_PLACES = ("harbour", "garden", "station", "library", "mountain", "kitchen", "workshop")
_THINGS = ("lantern", "basket", "letter", "compass", "blanket", "violin", "ladder", "kettle")
_DEEDS = ("carried", "mended", "painted", "borrowed", "polished", "dropped", "admired")
_HAN = ("春风", "明月", "青山", "流水", "白云", "孤舟", "落花", "残阳")
_DID = ("照", "过", "送", "入", "映", "随", "吹", "伴")


def english(paragraphs: int, seed: int = 0) -> str:
    """Paragraphs of three to five sentences, a blank line between them."""
    rng = random.Random(seed)
    return "\n\n".join(
        " ".join(_sentence(rng) for _ in range(rng.randint(3, 5))) for _ in range(paragraphs)
    )


def _sentence(rng: random.Random) -> str:
    name, thing, place = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_PLACES)
    return f"{name} {rng.choice(_DEEDS)} the {thing} near the {place} at {rng.randint(1, 12)}."


def chinese(paragraphs: int, seed: int = 0) -> str:
    """Paragraphs of verse."""
    rng = random.Random(seed)
    return "\n\n".join("\n".join(_verse(rng) for _ in range(4)) for _ in range(paragraphs))


def _verse(rng: random.Random) -> str:
    first, second, third, fourth = rng.sample(_HAN, 4)
    return f"{first}{rng.choice(_DID)}{second}，{third}{rng.choice(_DID)}{fourth}。"
