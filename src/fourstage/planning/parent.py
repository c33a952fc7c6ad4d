"""A model that is gone on from: which it is, and what of a recipe it decides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fourstage.errors import InputError
from fourstage.model.config import ModelConfig
from fourstage.planning.architecture import DEFAULTS
from fourstage.planning.rules import Derived
from fourstage.recipe.schema import STAGES, Recipe

# What may differ from the parent's: the weights are the same at another context.
POSITIONS = ("context", "rope_scaling", "rope_theta")
_OF_PARENT = "of the parent model"


def parent_folder(recipe: Recipe) -> Path | None:
    """The first model from outside that a stage starts from; None where there is none."""
    folders = (recipe.stage(stage).source_model for stage in STAGES)
    return next((Path(folder) for folder in folders if folder), None)


def parent_shape(recipe: Recipe) -> ModelConfig | None:
    """The shape of `parent_folder`, from its config.json alone.

    Raises:
        InputError: a folder holds no model.
    """
    from fourstage.interchange import load_config

    folder = parent_folder(recipe)
    return None if folder is None else load_config(folder)


def replaces_the_shape(recipe: Recipe) -> bool:
    """Whether all models of the run are made from the parent, so that no other shape counts."""
    return recipe.stage(recipe.needed()[0]).source_model is not None


def with_parent(
    section: dict[str, Any], parent: ModelConfig, replaces: bool
) -> tuple[dict[str, Any], list[Derived]]:
    """The values of `model` with the parent's sizes and options; those that are usual unsaid.

    Args:
        section: the recipe's `model`, None where a value is left out.
        replaces: whether the parent's values hold even where the recipe has others, but for those
            of positions, which may change.

    Returns:
        the values, and those that came from the parent.

    Raises:
        InputError: a context longer than the positions that the parent has learned.
    """
    values, derived = dict(section), list[Derived]()
    if parent.positions == "learned" and (values["context"] or 0) > parent.context:
        raise InputError(
            f"model.context={values['context']} is longer than the {parent.context} positions that "
            f"the model to start from has learned: write model.context={parent.context} or less"
        )

    def take(name: str, value: Any, rule: str = _OF_PARENT) -> None:
        values[name] = value
        derived.append(Derived(f"model.{name}", value, rule))

    def is_theirs(name: str, ours: Any, value: Any) -> bool:
        # A default can stand for a value of its own, such as 0 for that of the head's width.
        both_usual = ours == DEFAULTS.get(name) and value == plain[name]
        return both_usual or value == (tuple(ours) if isinstance(ours, list) else ours)

    plain = dataclasses.replace(parent, **DEFAULTS).to_json()
    theirs = parent.to_json()
    del theirs["vocab_size"]
    if replaces:
        values["family"] = None
    if values["window"] is not None and not replaces:
        del theirs["windows"]
    for name, value in theirs.items():
        ours = values[name]
        if ours is None:
            if name not in DEFAULTS or value != plain[name]:
                take(name, value)
        elif replaces and name not in POSITIONS and not is_theirs(name, ours, value):
            take(name, value, f"{_OF_PARENT}, not the {ours} of the recipe")
    if replaces:
        values["window"] = values["full_every"] = values["params"] = None
    if section["rope_scaling"] is not None:
        for name, value in _stretch(values, parent).items():
            values["rope_scaling"] = {**values["rope_scaling"], name: value}
            rule = "the context over that of the parent model" if name == "factor" else _OF_PARENT
            derived.append(Derived(f"model.rope_scaling.{name}", value, rule))
    return values, derived


def at_positions(theirs: ModelConfig, ours: ModelConfig, is_parent: bool) -> ModelConfig:
    """The shape of a model from outside in a run of the shape `ours`, with a position a cell.

    A longer context is kept. `theirs` itself where its config.json says the same of both.

    Args:
        is_parent: whether `ours` was derived from this model, so that its angles become those.
    """
    from fourstage.interchange.families.rope import as_saved

    angles = ours if is_parent else theirs
    after = dataclasses.replace(
        theirs,
        context=max(theirs.context, ours.context),
        rope_theta=angles.rope_theta,
        rope_scaling=angles.rope_scaling,
    )
    return theirs if as_saved(after) == as_saved(theirs) else after


def _stretch(values: dict[str, Any], parent: ModelConfig) -> dict[str, Any]:
    """What a scaling asked for leaves out: the context it starts from, and the factor to ours."""
    scaling = values["rope_scaling"]
    if scaling["factor"] != 1.0:
        return {}
    before = parent.rope_scaling.original_context if parent.rope_scaling else 0
    original = scaling["original_context"] or before or parent.context
    found: dict[str, Any] = {}
    if not scaling["original_context"]:
        found["original_context"] = original
    # A `dynamic` scaling has the ratio of the contexts beside its factor.
    if scaling["kind"] != "dynamic" and values["context"] > original:
        found["factor"] = values["context"] / original
    return found
