"""The vocabulary and the shape of a recipe's model: the parent's, the sizes given, or by rule."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fourstage.model.config import ModelConfig
from fourstage.model.families import FAMILIES
from fourstage.planning import rules
from fourstage.planning.architecture import DEFAULTS, SIZES, options_of
from fourstage.planning.parent import replaces_the_shape, with_parent
from fourstage.planning.rules import Ruled
from fourstage.planning.shapes import (
    WORLD_VOCABULARY,
    Target,
    context_for,
    head_width_for,
    shape_for,
)

if TYPE_CHECKING:
    from fourstage.planning.resolve import _Filling

_USUAL_PARAMS = 1_000_000
# Width of the 1M shape, which the rules of the learning rates were set on.
_BASE_WIDTH = 128


def fill(filling: _Filling) -> None:
    """Vocabulary and shape, from the parent's, the sizes given or the number of parameters."""
    given = filling.recipe.model
    params: float = given.params or _USUAL_PARAMS
    if given.params is None and given.layers and given.width:
        params = max(1000.0, 12.0 * given.layers * given.width**2)
    elif given.params is None and filling.facts.model is None:
        filling.fill("model.params", _USUAL_PARAMS, "what a CPU trains in minutes")
    if filling.facts.model is not None:
        params = _parent(filling, filling.facts.model, params)
    _options(filling)
    vocabulary = filling.facts.vocab_size or filling.by_rule(
        "tokenizer.vocab_size", _vocabulary(filling, params)
    )
    filling.fill("tokenizer.vocab_size", vocabulary, "of the tokenizer")
    filling.fill("model.context", context_for(params), "256 tokens when small, 2,048 from 100M on")
    _scale_with_width(filling)
    sizes = filling.values["model"]
    filling.config = shape_for(
        Target(
            params,
            vocabulary,
            sizes["context"],
            sizes["activation"],
            sizes["qk_norm"],
            **{name: sizes[name] for name in SIZES},
            options=options_of(sizes, 0, sizes["context"]) | {"windows": ()},
        )
    )
    windows = options_of(sizes, filling.config.layers, sizes["context"])["windows"]
    filling.config = dataclasses.replace(filling.config, windows=windows)
    filling.params = filling.config.parameters()
    filling.rated = _rated_parameters(filling)
    _fill_shape(filling)


def _parent(filling: _Filling, parent: ModelConfig, params: float) -> float:
    """Takes over what the parent decides; the parameters of the model that comes of it."""
    replaces = replaces_the_shape(filling.recipe)
    filling.values["model"], derived = with_parent(filling.values["model"], parent, replaces)
    tokenizer = filling.recipe.tokenizer
    if tokenizer.path is None and not tokenizer.train:
        filling.fill("tokenizer.vocab_size", parent.vocab_size, "of the parent model")
    filling.derived += derived
    return parent.parameters() if replaces else params


def _options(filling: _Filling) -> None:
    """Options left open: the family's, else those of a Llama with QK-norm."""
    sizes = filling.values["model"]
    if filling.facts.model is None and sizes["family"] is not None:
        for name, value in FAMILIES[sizes["family"]].items():
            filling.fill(f"model.{name}", value, f"of the family {sizes['family']}")
    for name, value in DEFAULTS.items():
        if sizes[name] is None and name not in ("family", "windows"):
            sizes[name] = value
    if sizes["experts"]:
        filling.fill("model.balance_loss", 0.01, "Fedus et al., Switch Transformers, 2022")
        filling.fill("model.router_z_loss", 0.001, "Zoph et al., ST-MoE, 2022")


def _scale_with_width(filling: _Filling) -> None:
    """What muP asks of a shape: a base, heads of the base's width, and a head of its own."""
    if filling.recipe.model.width_scaling == "standard":
        return
    base = filling.fill("model.base_width", _BASE_WIDTH, "of the 1M shape that rates were set on")
    filling.fill("model.head_width", head_width_for(base), "the base's: wider models have more")
    filling.fill("model.tie_embeddings", False, "the head learns at another rate than the table")


def _rated_parameters(filling: _Filling) -> float:
    """Parameters of the shape at its base width: matrices go with its square."""
    base = filling.values["model"]["base_width"]
    if base is None:
        return filling.params
    ratio = base / filling.config.width
    tables = filling.params - filling.config.non_embedding_parameters()
    return tables * ratio + (filling.params - tables) * ratio**2


def _vocabulary(filling: _Filling, params: float) -> Ruled:
    ruled = rules.vocabulary_size(params, filling.facts.text_bytes)
    if filling.recipe.data.pretrain == "world" and ruled.value > WORLD_VOCABULARY:
        return Ruled(WORLD_VOCABULARY, "the words of the embedded world give no more pieces")
    return ruled


def _fill_shape(filling: _Filling) -> None:
    filling.fill("model.params", filling.config.parameters(), "the exact count of the shape")
    why = {
        "layers": "width over layers as published: 32 at 1M parameters, 64 at 125M, 128 at 7B",
        "width": "the shape whose exact count is nearest model.params",
        "heads": "width / head_width",
        "kv_heads": "as many as heads; 8 from 30B on (Llama 2)",
        "mlp_width": "8/3 of the width with a gate, 4 times without",
        "head_width": "32 up to width 256, 64 up to 2,048, then 128",
        "tie_embeddings": "shared when two tables would be over 40% of the parameters",
    }
    for name in SIZES:
        filling.fill(f"model.{name}", getattr(filling.config, name), why[name])
