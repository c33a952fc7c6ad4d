"""`config.json` of the Hugging Face architectures in `families`, read and written.

What such a config may ask for and the model here lacks is refused by the name of its field. A model
is saved as the architecture that it came from, else as the first whose options it fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fourstage.errors import InputError
from fourstage.interchange.families import FAMILIES, Family
from fourstage.interchange.families.rope import as_saved
from fourstage.model.config import ModelConfig

if TYPE_CHECKING:
    from fourstage.model.transformer import Head


def to_huggingface(config: ModelConfig, head: Head) -> dict[str, Any]:
    """The `config.json` of a model, without token ids.

    Raises:
        InputError: no architecture has these options.
    """
    family = FAMILIES[exportable(config)]
    config = as_saved(config)
    kind = family.writer if head == "language" else family.scorer
    fields = {"architectures": [kind], "model_type": family.model_type, **_written(config, family)}
    if head == "scalar":
        fields |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return fields


def as_scorer(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a model of the same shape with a scalar head."""
    scorers = [f.scorer for f in FAMILIES.values() if f.model_type == raw.get("model_type")]
    return {**raw, "architectures": scorers, "num_labels": 1, "id2label": {"0": "reward"}}


def exportable(config: ModelConfig) -> str:
    """The architecture that the model is saved as, a key of `FAMILIES`.

    An architecture fits if its config.json says all options: read back, it gives them again.

    Raises:
        InputError: no architecture has these options, with those that the nearest one lacks.
    """
    config = as_saved(config)
    tried = [config.family] if config.family in FAMILIES else list(FAMILIES)
    lacking = {name: _lacking(config, FAMILIES[name]) for name in tried}
    best = min(tried, key=lambda name: len(lacking[name]))
    if not lacking[best]:
        return best
    if config.family:
        return exportable(dataclasses.replace(config, family=""))
    kind = FAMILIES[best].writer
    raise InputError(
        *(
            f"model.{option}={getattr(config, option)!r} cannot be saved: no architecture of "
            f"transformers has it beside the other options; {kind} would with {value!r}"
            for option, value in lacking[best].items()
        )
    )


def from_huggingface(raw: Mapping[str, Any], where: str) -> tuple[ModelConfig, Head]:
    """The model and head that a `config.json` describes; `where` names it in errors.

    A gated `hidden_act` of `relu` is read as ReLU^2: whether gate = up is for the weights to show.

    Raises:
        InputError: another architecture, or a feature that this model lacks.
    """
    found = [
        name for name, family in FAMILIES.items() if family.model_type == raw.get("model_type")
    ]
    if not found:
        known = ", ".join(repr(family.model_type) for family in FAMILIES.values())
        raise InputError(
            f"{where}: model_type={raw.get('model_type')!r} is not supported: use a folder of "
            f"model_type {known}"
        )
    family = FAMILIES[found[0]]
    head = _head(raw, family, where)
    faults = _unsupported(raw, family)
    try:
        if faults:
            raise InputError(*faults)
        config = _read(raw, family)
    except InputError as error:
        raise InputError(*(f"{where}: {fault}" for fault in error.faults)) from error
    if exportable(config) != found[0]:
        config = dataclasses.replace(config, family=found[0])
    return config, head


def _head(raw: Mapping[str, Any], family: Family, where: str) -> Head:
    named = raw.get("architectures") or [family.writer]
    architecture = named[0] if isinstance(named, list) else named
    if architecture == family.writer:
        return "language"
    if architecture != family.scorer:
        raise InputError(
            f"{where}: architectures={architecture!r} is not supported: use {family.writer}, or "
            f"{family.scorer} with one label"
        )
    names = raw.get("id2label")
    labels = len(names) if isinstance(names, Mapping) else raw.get("num_labels", 2)
    if labels != 1:
        raise InputError(f"{where}: num_labels={labels}: a reward model has one label")
    return "scalar"


def _unsupported(raw: Mapping[str, Any], family: Family) -> list[str]:
    """A line for each feature that is asked for and not there."""
    return [
        f"{name} is set and not supported: use a model without it"
        for name in (*family.refused, "quantization_config")
        if raw.get(name)
    ]


def _read(raw: Mapping[str, Any], family: Family) -> ModelConfig:
    """Every trait's options, or every trait's faults at once."""
    usual = {family.aliases.get(name, name): value for name, value in raw.items()}
    fields = {**family.defaults, **usual, **raw}
    options: dict[str, Any] = dict(family.options)
    faults: list[str] = []
    for trait in family.traits:
        try:
            options |= trait.read(fields)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*dict.fromkeys(faults))
    return ModelConfig(**options)


def _written(config: ModelConfig, family: Family) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for trait in family.traits:
        fields |= trait.write(config)
    return fields


def _lacking(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Options that the family's config.json does not say: option -> what it would be there."""
    fields = {**family.defaults, **_written(config, family)}
    options: dict[str, Any] = {
        field.name: field.default for field in dataclasses.fields(ModelConfig)
    }
    options |= family.options
    for trait in family.traits:
        try:
            options |= trait.read(fields)
        except InputError:
            # No model of the family has such a value: its usual one stands in.
            options |= trait.read(family.defaults)
    # As ModelConfig fills them in.
    options["head_width"] = options["head_width"] or config.width // config.heads
    options["attention_scale"] = options["attention_scale"] or options["head_width"] ** -0.5
    named = options.keys() - {"family", *_idle(config)}
    mine = {name: getattr(config, name) for name in options if name in named}
    return {name: options[name] for name, value in mine.items() if options[name] != value}


def _idle(config: ModelConfig) -> set[str]:
    """Options that mean nothing beside the others, so that no config.json need say them."""
    idle = set()
    if config.positions != "rotary":
        idle |= {"rope_theta", "rope_fraction", "rope_scaling", "local_rope_theta"}
    if not config.experts:
        idle |= {"experts_per_token", "normalise_experts"}
    if not any(config.windows):
        idle |= {"windows", "local_rope_theta"}
    if not config.qk_norm:
        idle.add("qk_norm_whole")
    if config.norm == "layer":
        idle.add("norm_offset")
    return idle
