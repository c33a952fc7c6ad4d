"""Weights under our names and under those of a Hugging Face family, both ways.

Ours are Llama's, with queries, keys, values, gates and ups apart, and the experts of a layer
stacked. A family says how its own differ (`Names`); everything here is a pure function of tensors,
which may be on the meta device. A tensor that needs no change is not copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fourstage.interchange.families.naming import EXPERT_PARTS, QKV, Names
from fourstage.model.config import ModelConfig

Tensors = Mapping[str, Tensor]

_OUR_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_OUR_EXPERTS = "mlp.experts."
_LEAVES = ("weight", "bias")
# Angles and causal masks, which older versions saved beside the weights.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.bias|\.attention\.bias|\.masked_bias)$")
_HEADS = ("lm_head.", "score.")


def to_theirs(ours: Tensors, config: ModelConfig, names: Names) -> dict[str, Tensor]:
    """Our tensors as the family's checkpoints on the hub name them."""
    if config.activation == "relu2" and names.gated:
        ours = _with_gates(ours)
    blocks = f"{names.body}.{names.blocks}."
    return _renamed(
        ours, _OUR_BLOCK, names.ends, blocks, lambda block: _block_to_theirs(block, config, names)
    )


def to_ours(theirs: Tensors, config: ModelConfig, names: Names) -> dict[str, Tensor]:
    """The inverse of `to_theirs`, of tensors as `canonical` gives them."""
    their_block = re.compile(re.escape(f"{names.body}.{names.blocks}.") + r"(\d+)\.(.+)")
    ends = {value: key for key, value in names.ends.items()}
    ours = _renamed(
        theirs, their_block, ends, "model.layers.", lambda b: _block_to_ours(b, config, names)
    )
    if config.activation == "relu2" and names.gated:
        ours = {name: tensor for name, tensor in ours.items() if "gate_proj" not in name}
    return ours


def _renamed(
    tensors: Tensors,
    block: re.Pattern[str],
    ends: Mapping[str, str],
    blocks: str,
    of_block: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """What is in no block under the names of `ends`; `of_block` of each block, behind `blocks`."""
    renamed: dict[str, Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        inside = block.fullmatch(name)
        if inside is None:
            module, leaf = name.rsplit(".", 1)
            renamed[f"{ends.get(module, module)}.{leaf}"] = tensor
        else:
            found.setdefault(inside[1], {})[inside[2]] = tensor
    for layer, own in found.items():
        renamed |= {f"{blocks}{layer}.{name}": tensor for name, tensor in of_block(own).items()}
    return renamed


def canonical(tensors: Tensors, names: Names, tied: bool) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names that `to_theirs` gives, whatever wrote it.

    Buffers and the head of a tied model are dropped; a body saved without its head, and experts
    stacked as transformers 5 holds them, are put under the usual names.
    """
    found = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.search(name)}
    if not any(name.startswith(f"{names.body}.") for name in found):
        found = {
            name if name.startswith(_HEADS) else f"{names.body}.{name}": tensor
            for name, tensor in found.items()
        }
    head = names.ends.get("lm_head", "lm_head") + ".weight"
    if "lm_head.weight" in found:
        found[head] = found.pop("lm_head.weight")
    if tied:
        found.pop(head, None)
    return _each_expert_apart(found, names)


def _with_gates(ours: Tensors) -> dict[str, Tensor]:
    gated = dict(ours)
    for name, tensor in ours.items():
        if "up_proj" in name:
            gated[name.replace("up_proj", "gate_proj")] = tensor.clone()
    return gated


def _block_to_theirs(block: Tensors, config: ModelConfig, names: Names) -> dict[str, Tensor]:
    rest = dict(block)
    theirs: dict[str, Tensor] = {}
    for module, parts in names.fused.items():
        for leaf in _LEAVES:
            if f"{parts[0]}.{leaf}" in rest:
                found = [rest.pop(f"{part}.{leaf}") for part in parts]
                theirs[f"{module}.{leaf}"] = _joined(found, config, names.by_head)
    for name, tensor in rest.items():
        if name.startswith(_OUR_EXPERTS):
            part = dict(zip(EXPERT_PARTS, names.expert, strict=True))[
                name.removeprefix(_OUR_EXPERTS)
            ]
            for expert, weight in enumerate(tensor.unbind()):
                theirs[f"{names.mixture}.experts.{expert}.{part}.weight"] = weight
            continue
        module, leaf = name.rsplit(".", 1)
        theirs[f"{names.modules.get(module, module)}.{leaf}"] = tensor
    return _turned(theirs, names)


def _block_to_ours(block: Tensors, config: ModelConfig, names: Names) -> dict[str, Tensor]:
    rest = _turned(block, names)
    ours: dict[str, Tensor] = {}
    for module, parts in names.fused.items():
        for leaf in _LEAVES:
            joined = rest.pop(f"{module}.{leaf}", None)
            if joined is not None:
                for part, tensor in zip(parts, _parted(joined, parts, config, names), strict=True):
                    ours[f"{part}.{leaf}"] = tensor
    for ours_part, part in zip(EXPERT_PARTS, names.expert, strict=True):
        each = [f"{names.mixture}.experts.{i}.{part}.weight" for i in range(config.experts)]
        if each and each[0] in rest:
            stacked = torch.stack([rest.pop(name) for name in each])
            ours[f"{_OUR_EXPERTS}{ours_part}"] = stacked
    modules = {value: key for key, value in names.modules.items()}
    for name, tensor in rest.items():
        module, leaf = name.rsplit(".", 1)
        ours[f"{modules.get(module, module)}.{leaf}"] = tensor
    return ours


def _turned(block: Tensors, names: Names) -> dict[str, Tensor]:
    turned = dict(block)
    for module in names.transposed:
        if f"{module}.weight" in turned:
            turned[f"{module}.weight"] = turned[f"{module}.weight"].t().contiguous()
    return turned


def _joined(parts: Sequence[Tensor], config: ModelConfig, by_head: bool) -> Tensor:
    """[rows, ...] of each part -> [rows of all, ...]."""
    if not by_head:
        return torch.cat(list(parts))
    return torch.stack([part.unflatten(0, (config.heads, -1)) for part in parts], 1).flatten(0, 2)


def _parted(
    joined: Tensor, parts: Sequence[str], config: ModelConfig, names: Names
) -> Sequence[Tensor]:
    """The inverse of `_joined`; every part in memory of its own."""
    if names.by_head:
        heads = joined.unflatten(0, (config.heads, len(parts), -1))
        return [part.flatten(0, 1).clone() for part in heads.unbind(1)]
    rows = [config.query_width, config.key_width, config.key_width]
    split = rows if tuple(parts) == QKV else [len(joined) // len(parts)] * len(parts)
    return [part.clone() for part in joined.split(split)]


def _each_expert_apart(tensors: Tensors, names: Names) -> dict[str, Tensor]:
    gate, up, down = names.expert
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".mlp.gate.weight") and names.mixture != "mlp":
            name = name.replace(".mlp.gate.", f".{names.mixture}.gate.")
        stem, dot, leaf = name.rpartition(".mlp.experts.")
        stem = f"{stem}.{names.mixture}.experts"
        if not dot or leaf not in ("gate_up_proj", "down_proj"):
            apart[name] = tensor
            continue
        for expert, weight in enumerate(tensor.unbind()):
            if leaf == "down_proj":
                apart[f"{stem}.{expert}.{down}.weight"] = weight
            else:
                first, second = weight.chunk(2)
                apart[f"{stem}.{expert}.{gate}.weight"] = first
                apart[f"{stem}.{expert}.{up}.weight"] = second
    return apart
