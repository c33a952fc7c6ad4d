"""How a module's parameters lie on the processes, and what is summed over which of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from fourstage.parallel.mesh import Mesh
from fourstage.parallel.tensor import Cut, joined


def local(tensor: Tensor) -> Tensor:
    """The memory of this process's own part; of a plain tensor all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Box:
    """Where a process's part of a tensor lies in the whole.

    Attributes:
        shape: of the whole tensor. offset, size: of the part, an entry an axis.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        return cls(tuple(shape), (0,) * len(shape), tuple(shape))

    @property
    def slices(self) -> tuple[slice, ...]:
        pairs = zip(self.offset, self.size, strict=True)
        return tuple(slice(start, start + length) for start, length in pairs)


class Placement:
    """A module laid out over a mesh.

    Attributes:
        module: what trains on this process. Where every process holds all of it, that is the module
            that was given; else a sharded twin of it, which `parallel.apply` makes.
    """

    def __init__(
        self, whole: nn.Module, mesh: Mesh, module: nn.Module | None = None, cut: Cut | None = None
    ):
        self.mesh = mesh
        self.module = whole if module is None else module
        self._whole = whole
        self._cut = cut or Cut({}, set())
        self._shapes = {name: tuple(p.shape) for name, p in whole.named_parameters()}
        self._parameters = dict(self.module.named_parameters())
        self._borrowers = 0
        if self.is_split:
            self._let_go()

    @property
    def is_split(self) -> bool:
        """Whether this process trains another module than the one that was given."""
        return self.module is not self._whole

    @property
    def axes(self) -> Mapping[str, int]:
        """Name -> the axis along which each process of `mesh.tensor` holds an equal slice."""
        return self._cut.axes

    def forget_gathered(self) -> None:
        """Lets go of weights that a pass without gradients gathered and that may have changed."""
        if self.mesh.shards is not None:
            for part in self.module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()

    @torch.no_grad()
    def sum_gradients(self, names: Sequence[str], gradients: list[Tensor], loss: Tensor) -> None:
        """Sums gradients and loss over the processes that saw other data, in place.

        `gradients` are the local parts; those of shards were summed as they were computed.
        """
        mesh = self.mesh
        mesh.data.all_reduce_sum([loss] if mesh.shards else [*gradients, loss])
        partial = [g for n, g in zip(names, gradients, strict=True) if n in self._cut.partial]
        mesh.tensor.all_reduce_sum(partial)

    @torch.no_grad()
    def norm(self, names: Sequence[str], gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients together, from the local parts."""
        if not self.is_split:
            return torch.nn.utils.get_total_norm(gradients, foreach=True)
        # Every process of the tensor group adds its share of what all of them hold whole.
        shares = [
            1.0 if name in self._cut.axes else self.mesh.tensor.world_size**-0.5 for name in names
        ]
        norms = torch.stack(torch._foreach_norm(gradients)).double()
        norms *= torch.tensor(shares, dtype=norms.dtype, device=norms.device)
        total = norms.square().sum()
        self.mesh.model.all_reduce_sum([total])
        return total.sqrt().to(gradients[0].dtype)

    def first(self, names: Sequence[str], tensors: Sequence[Tensor], fits: Callable) -> str | None:
        """The first name of which any process's part fits."""
        found = (index for index, tensor in enumerate(tensors) if fits(local(tensor)))
        index = self.mesh.world.lowest(next(found, math.inf))
        return None if index == math.inf else names[int(index)]

    def agrees(self, names: Sequence[str], tensors: Sequence[Tensor]) -> bool:
        """Whether what several processes hold alike is the same on all of them."""
        parts = [local(tensor).detach() for tensor in tensors]
        uncut = [p for n, p in zip(names, parts, strict=True) if n not in self._cut.axes]
        same = [self.mesh.replicas.agrees(parts), self.mesh.tensor.agrees(uncut)]
        return not self.mesh.world.any(not all(same)) if self.is_split else all(same)

    def align(self, tensors: Sequence[Tensor]) -> None:
        """Gives every replica the tensors of the first, in place."""
        self.mesh.replicas.broadcast([local(tensor).detach() for tensor in tensors])

    @contextmanager
    def whole(self, everywhere: bool = True) -> Generator[nn.Module]:
        """The module that was given, on every process, with the weights as they are now.

        Every process enters it, and holds all of the weights while it is in it.

        Args:
            everywhere: False leaves those that do not write with nothing in it.
        """
        if self.is_split and not self._borrowers:
            self.restore_whole(everywhere)
        self._borrowers += 1
        try:
            yield self._whole
        finally:
            self._borrowers -= 1
            if self.is_split and not self._borrowers:
                self._let_go()

    @torch.no_grad()
    def restore_whole(self, everywhere: bool = True) -> None:
        """Gathers the weights into the module that was given, where they then stay."""
        if not self.is_split:
            return
        keeps = everywhere or self.mesh.world.writes
        for name, parameter in self._whole.named_parameters():
            part = self._parameters[name].detach()
            part = part.full_tensor() if isinstance(part, DTensor) else part
            full = joined(part, self._cut.axes.get(name), self.mesh.tensor)
            if keeps:
                # A copy where nothing was gathered: training goes on in the original.
                parameter.data = full.clone() if full is part else full
        kept = self.module.state_dict()
        for name, buffer in self._whole.state_dict().items():
            if name not in self._shapes:
                buffer.copy_(kept[name])

    def _let_go(self) -> None:
        for parameter in self._whole.parameters():
            parameter.data = parameter.data.new_empty(0)

    def box(self, name: str, shape: Sequence[int]) -> Box:
        """This process's part of something of `shape` that is kept beside a parameter.

        That is the parameter itself, an average or a moment of it (of its shape, or with other
        numbers in its rows), or a number without an axis, which every process holds.
        """
        if not shape or name not in self._shapes:
            return Box.whole(shape)
        axis, offset, size = self._cut.axes.get(name), [0] * len(shape), list(shape)
        if axis is not None:
            size[axis] //= self.mesh.tensor.world_size
            offset[axis] = self.mesh.slice * size[axis]
        if isinstance(self._parameters[name], DTensor):
            # As torch.chunk deals out rows, and FSDP2 with it.
            portion = -(-size[0] // self.mesh.sizes.shard)
            start = min(size[0], self.mesh.part * portion)
            offset[0] += start
            size[0] = min(portion, size[0] - start)
        return Box(tuple(shape), tuple(offset), tuple(size))

    def shape_of_all(self, name: str, part: Tensor) -> tuple[int, ...]:
        """The shape of the whole of which this process holds `part`."""
        shape, axis = list(part.shape), self._cut.axes.get(name)
        if not shape or name not in self._shapes:
            return tuple(shape)
        if isinstance(self._parameters[name], DTensor):
            shape[0] = self._parameters[name].shape[0]
        if axis is not None:
            shape[axis] *= self.mesh.tensor.world_size
        return tuple(shape)

    def writes(self, name: str, part: Tensor) -> bool:
        """Whether this process keeps its part of something beside a parameter in a checkpoint."""
        if not self.is_split or name not in self._shapes or not part.dim():
            return self.mesh.world.writes
        own_slice = name in self._cut.axes or self.mesh.slice == 0
        own_part = isinstance(self._parameters[name], DTensor) or self.mesh.part == 0
        return self.mesh.replica == 0 and own_slice and own_part

    def like(self, name: str, part: Tensor, shape: Sequence[int]) -> Tensor:
        """`part`, cut as the parameter is: a DTensor where that is one; `shape` is the whole's."""
        parameter = self._parameters.get(name)
        if part.dim() == 0 or not isinstance(parameter, DTensor):
            return part
        shape, axis = list(shape), self._cut.axes.get(name)
        if axis is not None:
            shape[axis] //= self.mesh.tensor.world_size
        size = torch.Size(shape)
        stride = torch.empty(size, device="meta").stride()
        return DTensor.from_local(
            part.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=size,
            stride=stride,
        )
