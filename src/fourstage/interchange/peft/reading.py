"""A PEFT folder as the model that its adapter makes of its base.

Weights are merged under the base's own names, so that fused and transposed layers need no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourstage import files
from fourstage.errors import InputError
from fourstage.interchange.peft.layout import CONFIG, PARTS, PREFIX, WEIGHTS
from fourstage.interchange.weights import read_tensors

# Ways to draw A and B that leave the base as it is.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
# What changes what a layer computes and is not known here.
_REFUSED = (
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> dict[str, Any]:
    """The fields of adapter_config.json.

    Raises:
        InputError: it is no JSON object, has a feature that is not supported, or no
            tokenizer lies beside it.
    """
    path = folder / CONFIG
    try:
        config = files.read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): save or copy it again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InputError(f"{path} describes no LoRA adapter, and no other kind is supported")
    faults = [f"{path}: {name} is set and not supported" for name in _REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        faults.append(f"{path}: bias={config['bias']!r} is not supported: train with bias='none'")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        faults.append(
            f"{path}: init_lora_weights={config['init_lora_weights']!r} changes the base: save the "
            "adapter converted to plain LoRA"
        )
    if not (folder / "tokenizer.json").is_file():
        faults.append(f"{folder} holds no tokenizer.json: copy the base's tokenizer files there")
    if faults:
        raise InputError(*faults)
    return config


def scores(folder: Path) -> bool:
    """Whether an adapter makes a model that scores of its base."""
    return read_adapter(folder).get("task_type") == "SEQ_CLS"


def base_folder(folder: Path) -> Path:
    """The model folder that an adapter belongs to; a relative path is as seen from the adapter.

    Raises:
        InputError: there is no such folder.
    """
    named = str(read_adapter(folder).get("base_model_name_or_path") or "")
    for base in (folder / named, Path(named)):
        if named and (base / "config.json").is_file():
            return base.resolve()
    raise InputError(
        f"{folder / CONFIG} names the base {named!r}, which is no model folder here: write the "
        "path of one as its base_model_name_or_path"
    )


def merged(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's tensors with the adapter merged in, float32.

    `W + s B A` in place of W; with DoRA each row of that brought to its length; other tensors that
    the adapter holds (modules_to_save) in place of the base's.

    Raises:
        InputError: the adapter is for a layer that the base does not have, or of other sizes.
    """
    config = read_adapter(folder)
    layers, others = _layers(read_tensors(folder / WEIGHTS))
    found = {**tensors, **others}
    for module, parts in layers.items():
        name = f"{module}.weight"
        if name not in found:
            raise InputError(f"{folder / WEIGHTS} adapts {module}, which its base does not have")
        weight = found[name].t() if config.get("fan_in_fan_out") else found[name]
        try:
            weight = _sum(weight, parts, config)
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{folder / WEIGHTS}: the adapter of {module} does not fit a weight of "
                f"{tuple(weight.shape)}: give the base that it was trained on"
            ) from error
        found[name] = weight.t() if config.get("fan_in_fan_out") else weight
    return found


def _sum(weight: Tensor, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    rank = len(parts["lora_A"])
    scale = config["lora_alpha"] / rank ** (0.5 if config.get("use_rslora") else 1.0)
    weight = torch.addmm(weight, parts["lora_B"], parts["lora_A"], alpha=scale)
    if "lora_magnitude_vector" not in parts:
        return weight
    # Above zero: a row of zeros stays one.
    lengths = torch.linalg.vector_norm(weight, dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
    return weight * (parts["lora_magnitude_vector"].flatten() / lengths)[:, None]


def _layers(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The parts of each adapted layer, and what is held beside them, by name in the base."""
    layers: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(PREFIX)
        part = next((ours for ours, end in PARTS.items() if name.endswith(f".{end}")), None)
        if part is None:
            others[name] = tensor
        else:
            layers.setdefault(name.removesuffix(f".{PARTS[part]}"), {})[part] = tensor
    return layers, others
