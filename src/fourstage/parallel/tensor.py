"""Tensor parallelism, applied to a model from outside.

Of each pair of products the first keeps some rows of its weights (heads; numbers of the MLP; tokens
of the vocabulary) and the second some columns, so that one sum a pair joins them (Shoeybi et al.,
*Megatron-LM*, 2019, section 3). A process's slice is an ordinary smaller layer: the model's own
code works on it, fused products included.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.errors import InputError
from fourstage.model.attention import Attention
from fourstage.model.layout import Layout
from fourstage.model.mlp import MLP
from fourstage.model.transformer import Transformer
from fourstage.parallel.group import Group
from fourstage.parallel.regions import Region

_ROWS, _COLUMNS = 0, 1


@dataclass
class Cut:
    """What tensor parallelism did to a model's parameters.

    Attributes:
        axes: name -> axis along which each process holds an equal slice; the others it holds whole.
        partial: names of whole ones whose gradient each process has a part of.
    """

    axes: dict[str, int]
    partial: set[str]


class _SharedAttention(Attention):
    region: Region

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().project(self.region.enter(x)[: len(cos)], cos, sin)

    def _in_one_kernel(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        return super()._in_one_kernel(self.region.enter(x)[: len(cos)], cos, sin, layout)


class _SharedMLP(MLP):
    region: Region

    def forward(self, x: Tensor, *others, **named) -> Tensor:
        return super().forward(self.region.enter(x), *others, **named)


class _SharedColumns(nn.Linear):
    region: Region

    def forward(self, input: Tensor) -> Tensor:
        y = self.region.leave(F.linear(input, self.weight))
        return y if self.bias is None else y + self.bias


class _SharedTable(nn.Embedding):
    region: Region

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.shape[0]
        here = input - self.region.group.rank * rows
        away = (here < 0) | (here >= rows)
        found = F.embedding(here.masked_fill(away, 0), self.weight)
        return self.region.summed(found.masked_fill(away[:, None], 0.0))


class _SharedTransformer(Transformer):
    """Its blocks are shared; with `region.sequence` also what lies between their products."""

    region: Region
    shares_vocabulary: bool

    def forward(self, tokens: Tensor, layout: Layout, *others, **named) -> Tensor:
        hidden = super().forward(tokens, layout, *others, **named)
        return self.region.all_cells(hidden, layout.cells) if self.region.sequence else hidden

    @property
    def plain_head(self) -> Tensor | None:
        return None if self.shares_vocabulary else super().plain_head

    def logits(self, hidden: Tensor) -> Tensor:
        if not self.shares_vocabulary:
            return super().logits(hidden)
        return self.region.joined(super().logits(self.region.same(hidden)))


def share_products(model: Transformer, group: Group, sequence: bool) -> Cut:
    """Turns a model on the meta device into this process's slice of it, in place.

    Raises:
        InputError: a part of the model cannot be shared.
    """
    region = Region(group, sequence)
    cut = Cut({}, set())
    _become(model, _SharedTransformer, region)
    shares_vocabulary = model.config.vocab_size % group.world_size == 0
    model.shares_vocabulary = shares_vocabulary  # ty: ignore[invalid-assignment]
    if shares_vocabulary:
        _become(model.model.embed_tokens, _SharedTable, region)
        _cut(model, "model.embed_tokens", _ROWS, group, cut)
        if model.head == "language" and not model.config.tie_embeddings:
            _cut(model, "lm_head", _ROWS, group, cut)
    for number in range(model.config.layers):
        _share_block(model, f"model.layers.{number}", region, cut)
    if sequence:
        first = model.model.layers[0]
        first.register_forward_pre_hook(lambda block, args: (region.own_cells(args[0]), *args[1:]))
        between = ("model.layers.", "model.norm.")
        cut.partial |= {n for n, _ in model.named_parameters() if n.startswith(between)}
    cut.partial -= cut.axes.keys()
    return cut


def _share_block(model: Transformer, block: str, region: Region, cut: Cut) -> None:
    group = region.group
    attention = cast("Attention", model.get_submodule(f"{block}.self_attn"))
    mlp = model.get_submodule(f"{block}.mlp")
    _become(attention, _SharedAttention, region)
    _become(mlp, _SharedMLP, region)
    config = attention.config
    attention.config = dataclasses.replace(
        config,
        heads=config.heads // group.world_size,
        kv_heads=config.kv_heads // group.world_size,
    )
    if attention.slopes is not None:
        attention.slopes = slice_of(attention.slopes, _ROWS, group).clone()
    for layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        _cut(model, f"{block}.{layer}", _ROWS, group, cut)
    for layer in ("mlp.gate_proj", "mlp.up_proj"):
        _cut(model, f"{block}.{layer}", _ROWS, group, cut)
    for layer in ("self_attn.o_proj", "mlp.down_proj"):
        _become(model.get_submodule(f"{block}.{layer}"), _SharedColumns, region)
        _cut(model, f"{block}.{layer}", _COLUMNS, group, cut)
    # Each process sees its own heads only.
    norms = (f"{block}.self_attn.q_norm.", f"{block}.self_attn.k_norm.")
    cut.partial |= {name for name, _ in model.named_parameters() if name.startswith(norms)}


def _become(module: nn.Module, shared: type[nn.Module], region: Region) -> None:
    """Gives a module the class that works on a slice, which keeps all else of it.

    Raises:
        InputError: the module is of another kind than that class is made for.
    """
    if type(module) is not shared.__bases__[0]:
        raise InputError(
            f"parallel.tensor does not share out {type(module).__name__} layers: write "
            f"parallel.shard={region.group.world_size} instead"
        )
    module.__class__ = shared
    module.region = region  # ty: ignore[invalid-assignment]


def _cut(model: nn.Module, layer: str, axis: int, group: Group, cut: Cut) -> None:
    """Leaves a layer an equal slice of its weight, and of its bias where rows are cut."""
    try:
        module = model.get_submodule(layer)
    except AttributeError:  # an MLP without a gate
        return
    names = ("weight", "bias") if axis == _ROWS else ("weight",)
    for name in names:
        parameter = getattr(module, name, None)
        if parameter is None:
            continue
        shape = list(parameter.shape)
        shape[axis] //= group.world_size
        setattr(module, name, nn.Parameter(parameter.new_empty(shape), parameter.requires_grad))
        cut.axes[f"{layer}.{name}"] = axis
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape


def slice_of(full: Tensor, axis: int | None, group: Group) -> Tensor:
    """A process's equal slice of a tensor; all of it where no axis is cut."""
    return full if axis is None else full.chunk(group.world_size, dim=axis)[group.rank]


def joined(part: Tensor, axis: int | None, group: Group) -> Tensor:
    """The inverse of `slice_of`, on every process."""
    return part if axis is None else torch.cat(group.all_gather(part), dim=axis)
