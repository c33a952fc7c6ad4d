"""What of a model's tensors this process keeps in a checkpoint, and takes from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from fourstage.parallel.placement import Box, Placement, local
from fourstage.training.tensorfiles import StoredTensors


def own_parts(
    tensors: Mapping[str, Mapping[str, Tensor]], placement: Placement | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Box]]]:
    """Copies on the CPU of the tensors that this process writes, and where they lie in the whole.

    Without a placement they are all of them, and no boxes are needed.
    """
    if placement is None:
        return {
            stem: {n: _copy(t) for n, t in named.items()} for stem, named in tensors.items()
        }, {}
    copies: dict[str, dict[str, Tensor]] = {}
    boxes: dict[str, dict[str, Box]] = {}
    for stem, named in tensors.items():
        copies[stem], boxes[stem] = {}, {}
        for name, tensor in named.items():
            parameter, part = parameter_of(name), local(tensor)
            if placement.writes(parameter, part) and part.numel():
                copies[stem][name] = _copy(part)
                shape = placement.shape_of_all(parameter, part)
                boxes[stem][name] = placement.box(parameter, shape)
    return copies, boxes


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def parameter_of(name: str) -> str:
    """The parameter that a tensor is kept beside: `<parameter>:<slot>` is a moment of it."""
    return name.split(":", 1)[0]


class OwnParts(Mapping[str, Tensor]):
    """The tensors of a checkpoint as this process holds them, read as they are asked for."""

    def __init__(self, stored: StoredTensors, placement: Placement):
        self._stored, self._placement = stored, placement

    def __getitem__(self, name: str) -> Tensor:
        parameter, shape = parameter_of(name), self._stored.shape(name)
        part = self._stored.part(name, self._placement.box(parameter, shape))
        return self._placement.like(parameter, part, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
