"""Lays a module out over a mesh, from outside: the model's files know nothing of it.

Replicas alone train the module itself. Where no process holds all of it, a twin is trained: of each
product this process's slice (`parallel.tensor`), of each of those its shard (FSDP2: Zhao et al.,
*PyTorch FSDP*, 2023; Rajbhandari et al., *ZeRO*, 2020, stage 3), gathered a block at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from fourstage.model.transformer import Transformer
from fourstage.parallel.mesh import Mesh
from fourstage.parallel.placement import Placement
from fourstage.parallel.sizes import check_sizes
from fourstage.parallel.tensor import Cut, share_products, slice_of


def lay_out(module: nn.Module, mesh: Mesh) -> Placement:
    """Lays out a module of which every process holds all, with the same weights.

    Where it is split, the module's own weights are let go of: `Placement.whole` brings them back.

    Raises:
        InputError: a size of a model cannot be divided as the mesh asks for.
    """
    if not mesh.sizes.splits_the_model:
        return Placement(module, mesh)
    twin = _hollow(module)
    cut = Cut({}, set())
    if mesh.sizes.tensor > 1:
        for prefix, model in _transformers(twin):
            check_sizes(mesh.sizes, model.config)
            own = share_products(model, mesh.tensor, mesh.sizes.sequence)
            cut.axes |= {prefix + name: axis for name, axis in own.axes.items()}
            cut.partial |= {prefix + name for name in own.partial}
    filling = _Filling(module, twin, cut, mesh)
    for unit in _units(twin):
        filling(unit)
        if mesh.shards is not None:
            _shard(unit, mesh)
    return Placement(module, mesh, twin, cut)


def _hollow(module: nn.Module) -> nn.Module:
    """A copy of the module whose parameters have a shape and no content."""
    empty = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, empty)


def _transformers(module: nn.Module) -> Iterator[tuple[str, Transformer]]:
    for name, part in module.named_modules():
        if isinstance(part, Transformer):
            yield f"{name}." if name else "", part


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """What is gathered together: each block, the rest of each model, and what is around one."""
    for _, model in _transformers(module):
        yield from model.model.layers
        yield model
    # One that is not called itself has nothing of its own (policy and critic).
    if not isinstance(module, Transformer) and type(module).forward is not nn.Module.forward:
        yield module


class _Filling:
    """Gives the parameters of a twin that are still empty this process's slice of the weights."""

    def __init__(self, whole: nn.Module, twin: nn.Module, cut: Cut, mesh: Mesh):
        self._weights = dict(whole.named_parameters())
        # Kept, so that no other object takes an id while it stands for a name.
        self._empty = dict(twin.named_parameters())
        self._names = {id(parameter): name for name, parameter in self._empty.items()}
        self._filled: dict[str, nn.Parameter] = {}
        self._cut, self._mesh = cut, mesh

    def __call__(self, unit: nn.Module) -> None:
        for part in unit.modules():
            for own, parameter in list(part.named_parameters(recurse=False)):
                if parameter.is_meta:
                    setattr(part, own, self._content(self._names[id(parameter)]))

    def _content(self, name: str) -> nn.Parameter:
        """One parameter a name: what is tied stays so."""
        if name not in self._filled:
            full = self._weights[name].detach()
            own = slice_of(full, self._cut.axes.get(name), self._mesh.tensor)
            content = own.clone(memory_format=torch.contiguous_format)
            self._filled[name] = nn.Parameter(content, self._weights[name].requires_grad)
        return self._filled[name]


def _shard(unit: nn.Module, mesh: Mesh) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # A model's head is used after its forward pass: what is no block stays gathered through a step.
    is_block = not any(isinstance(part, Transformer) for part in unit.modules())
    fully_shard(unit, mesh=mesh.shards, reshard_after_forward=is_block)
    assert isinstance(unit, FSDPModule)
    # Gradients are of sums over global counts: processes add up, and nothing is averaged.
    unit.set_gradient_divide_factor(1.0)
    unit.set_force_sum_reduction_for_comms(True)
