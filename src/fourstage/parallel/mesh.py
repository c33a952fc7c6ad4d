"""The groups that a process belongs to: who sees other data, who holds other parts of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fourstage.parallel.group import Group
from fourstage.parallel.sizes import Sizes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Mesh:
    """`replicate x shard x tensor` processes; rank = (replica * shard + part) * tensor + slice.

    Attributes:
        world: all processes.
        data: those that work on different micro-batches with the same slice of each product.
        tensor: those that work on the same micro-batches, each with its slice of each product.
        replicas: those that hold the same part of the model.
        model: those that hold one copy of the model between them.
        shards: torch's mesh for `fully_shard`: [shard] or [replicate, shard]; None without shards.
    """

    def __init__(self, world: Group, sizes: Sizes | None = None):
        sizes = sizes or Sizes(replicate=world.world_size)
        assert sizes.processes == world.world_size, "sizes_for checks the number of processes"
        self.world, self.sizes = world, sizes
        self.replica, rest = divmod(world.rank, sizes.shard * sizes.tensor)
        self.part, self.slice = divmod(rest, sizes.tensor)
        self.data = self._those_with(lambda replica, part, slice_: slice_)
        self.tensor = self._those_with(lambda replica, part, slice_: (replica, part))
        self.replicas = self._those_with(lambda replica, part, slice_: (part, slice_))
        self.model = self._those_with(lambda replica, part, slice_: replica)
        self.shards = self._device_mesh()

    def _those_with(self, label: Callable) -> Group:
        """The processes with this one's label."""
        sizes, groups = self.sizes, {}
        for rank in range(self.world.world_size):
            replica, rest = divmod(rank, sizes.shard * sizes.tensor)
            groups.setdefault(label(replica, *divmod(rest, sizes.tensor)), []).append(rank)
        return self.world.part(list(groups.values()))

    def _device_mesh(self) -> DeviceMesh | None:
        sizes = self.sizes
        if sizes.shard == 1:
            return None
        from torch.distributed.device_mesh import init_device_mesh

        names = ("replicate", "shard", "tensor")
        shape = (sizes.replicate, sizes.shard, sizes.tensor)
        mesh = init_device_mesh(self.world.device.type, shape, mesh_dim_names=names)
        return mesh["replicate", "shard"] if sizes.replicate > 1 else mesh["shard"]
