"""Weights of a model folder: safetensors in one file or many, never pickle."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fourstage.errors import InputError, MachineError
from fourstage.interchange.configs import exportable
from fourstage.interchange.families import FAMILIES
from fourstage.interchange.families.naming import Names
from fourstage.interchange.names import canonical, to_ours, to_theirs
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def export_weights(model: Transformer) -> dict[str, Tensor]:
    """The tensors as the model's architecture names them, float32 on the CPU.

    Raises:
        InputError: no architecture of Hugging Face has the model's options.
    """
    tensors = {
        name: weight.detach().to("cpu", torch.float32).contiguous()
        for name, weight in model.named_parameters()
    }
    theirs = to_theirs(tensors, model.config, names_of(model.config))
    return {name: weight.contiguous() for name, weight in theirs.items()}


def names_of(config: ModelConfig) -> Names:
    """How the architecture that a model is saved as names its weights."""
    return FAMILIES[exportable(config)].names


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
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        tensors |= read_tensors(path)
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, float32 on the CPU.

    Raises:
        InputError: there is none, or it is cut short.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        part = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): save or copy it again") from error
    # A copy: memory of the file's map is aligned differently, and alignment can change bits.
    return {name: weight.to(torch.float32, copy=True) for name, weight in part.items()}


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
    """Puts the tensors of a folder into `model`, whose parameters may be on the meta device.

    Raises:
        InputError: tensors are missing, unknown or of another shape.
    """
    config, names = model.config, names_of(model.config)
    tensors = canonical(tensors, names, config.tie_embeddings or model.head == "scalar")
    shapes = {name: weight.to("meta") for name, weight in model.named_parameters()}
    expected = {name: weight.shape for name, weight in to_theirs(shapes, config, names).items()}
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
    # Buffers, such as the loads of experts, begin as in a model just made.
    kept = {name: value for name, value in model.state_dict().items() if name not in shapes}
    model.load_state_dict(kept | to_ours(tensors, config, names), assign=True)


def fitted_to_weights(
    config: ModelConfig, tensors: dict[str, Tensor], declares_ties: bool, folder: Path
) -> ModelConfig:
    """What only the weights can tell: whether a gated ReLU is a ReLU^2, and ties not declared.

    Raises:
        InputError: the ReLU is gated by weights of its own.
    """
    names = names_of(config)
    tensors = canonical(tensors, names, tied=False)
    if config.activation == "relu2" and names.gated:
        for gate, up in _gates_and_ups(tensors, names):
            if not torch.equal(gate, up):
                raise InputError(
                    f"{folder}: hidden_act='relu' with a gate of its own is not supported: "
                    "use a model with 'silu'"
                )
    head = names.ends.get("lm_head", "lm_head") + ".weight"
    if not declares_ties and head not in tensors:
        return dataclasses.replace(config, tie_embeddings=True)
    return config


def _gates_and_ups(tensors: dict[str, Tensor], names: Names) -> Iterator[tuple[Tensor, Tensor]]:
    """Both matrices of every gated MLP, apart or in one."""
    gate_name, up_name = (f".{part}.weight" for part in names.expert[:2])
    for name, tensor in tensors.items():
        if name.endswith("gate_up_proj.weight"):
            gate, up = tensor.chunk(2)
            yield gate, up
        other = name.removesuffix(gate_name) + up_name
        if name.endswith(gate_name) and other in tensors:
            yield tensor, tensors[other]
