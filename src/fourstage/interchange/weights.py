"""Weights of a model folder: safetensors in one file or many, never pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

from fourstage.errors import InputError, MachineError
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def export_weights(model: Transformer) -> dict[str, Tensor]:
    """The tensors as Hugging Face names them, float32 on the CPU."""
    tensors = {
        name: weight.detach().to("cpu", torch.float32).contiguous()
        for name, weight in model.state_dict().items()
    }
    if model.config.activation == "relu2":
        for layer in range(model.config.layers):
            mlp = f"model.layers.{layer}.mlp"
            tensors[f"{mlp}.gate_proj.weight"] = tensors[f"{mlp}.up_proj.weight"].clone()
    return tensors


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes one safetensors file; equal tensors give equal bytes.

    Raises:
        MachineError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise MachineError(f"cannot write {path}: {error}; free the disk and run again") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, float32 on the CPU, from one file or from shards.

    Raises:
        InputError: there are no safetensors, or they are cut short.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            part = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): save or copy it again") from error
        # A copy: memory of the file's map is aligned differently, and alignment can change bits.
        tensors |= {name: weight.to(torch.float32, copy=True) for name, weight in part.items()}
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / ONE_FILE).is_file():
        return [folder / ONE_FILE]
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / INDEX} is not an index of shards") from error
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise InputError(f"{folder / INDEX} names {outside[0]!r}, outside its folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder} lacks {missing[0]}, which its index names: copy it there")
        return [folder / name for name in names]
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt*")):
        raise InputError(
            f"{folder} holds pickled weights, which are never loaded: save it again with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    raise InputError(f"{folder} holds no weights: {ONE_FILE} or {INDEX} is missing")


def import_weights(model: Transformer, tensors: dict[str, Tensor], folder: Path) -> None:
    """Puts the tensors into `model`, whose parameters may be on the meta device.

    Raises:
        InputError: tensors are missing, unknown or of another shape.
    """
    tensors = {n: w for n, w in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
    if model.config.tie_embeddings or model.head == "scalar":
        tensors.pop("lm_head.weight", None)
    if model.config.activation == "relu2":
        tensors = {n: w for n, w in tensors.items() if not n.endswith("mlp.gate_proj.weight")}
    expected = {name: weight.shape for name, weight in model.state_dict().items()}
    faults = [f"{folder}: the weights lack {name}" for name in expected.keys() - tensors.keys()]
    faults += [
        f"{folder}: the weights hold {name}, which this architecture does not have"
        for name in tensors.keys() - expected.keys()
    ]
    faults += [
        f"{folder}: {name} has shape {tuple(tensors[name].shape)}, config.json asks for "
        f"{tuple(expected[name])}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name]
    ]
    if faults:
        raise InputError(*sorted(faults)[:5])
    model.load_state_dict(tensors, assign=True)


def fitted_to_weights(
    config: ModelConfig, tensors: dict[str, Tensor], declares_ties: bool, folder: Path
) -> ModelConfig:
    """What only the weights can tell: whether a gated ReLU is a ReLU^2, and ties not declared.

    Raises:
        InputError: the ReLU is gated by weights of its own.
    """
    if config.activation == "relu2":
        for layer in range(config.layers):
            gate = tensors.get(f"model.layers.{layer}.mlp.gate_proj.weight")
            up = tensors.get(f"model.layers.{layer}.mlp.up_proj.weight")
            if gate is not None and up is not None and not torch.equal(gate, up):
                raise InputError(
                    f"{folder}: hidden_act='relu' with a gate of its own is not supported: "
                    "use a model with 'silu'"
                )
    if not declares_ties and "lm_head.weight" not in tensors:
        return dataclasses.replace(config, tie_embeddings=True)
    return config
