"""Tensors in safetensors files, whole or in parts; nested states without pickle."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fourstage.parallel.placement import Box

_TENSOR, _ARRAY = "tensor of this checkpoint", "array of this checkpoint"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors of any device as one safetensors file.

    Raises:
        OSError: the disk refuses.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
    except SafetensorError as error:
        # The library reports a full disk in words; the number in them is the system's own.
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error), str(path)) from error


@dataclass(frozen=True)
class _Part:
    """A tensor of a file, and where it lies in the whole of its name."""

    file: Any
    box: Box


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name that lie in one file or in many, read as they are asked for.

    Args:
        files: each with the boxes of its tensors; None where it holds them whole.

    Raises:
        SafetensorError: a file is none.
        KeyError: a file lacks a tensor that it is to hold.
    """

    def __init__(self, files: Iterable[tuple[Path, Mapping[str, Box] | None]]):
        self._parts: dict[str, list[_Part]] = {}
        for path, boxes in files:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                box = boxes[name] if boxes else Box.whole(file.get_slice(name).get_shape())
                self._parts.setdefault(name, []).append(_Part(file, box))

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        if len(parts) == 1:
            return parts[0].file.get_tensor(name)
        return self.part(name, Box.whole(self.shape(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._parts[name][0].box.shape

    def part(self, name: str, wanted: Box) -> Tensor:
        """A box of one tensor; only the files that hold some of it are read."""
        if not wanted.shape:
            return self._parts[name][0].file.get_tensor(name)
        found: Tensor | None = None
        for part in self._parts[name]:
            here, there = _overlap(wanted, part.box)
            piece = part.file.get_slice(name)[there]
            if found is None:
                found = torch.empty(wanted.size, dtype=piece.dtype)
            found[here] = piece
        assert found is not None, "a name has a part"
        return found


def _overlap(wanted: Box, held: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where what two boxes share lies in the one and in the other; empty where they share none."""
    here, there = [], []
    for w_start, w_size, h_start, h_size in zip(
        wanted.offset, wanted.size, held.offset, held.size, strict=True
    ):
        start = max(w_start, h_start)
        end = max(start, min(w_start + w_size, h_start + h_size))
        # Beyond the end of a box an empty slice is still a valid one.
        here.append(slice(start - w_start, end - w_start) if end > start else slice(0, 0))
        there.append(slice(start - h_start, end - h_start) if end > start else slice(0, 0))
    return tuple(here), tuple(there)


def separate(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """A nested state -> (the same with tensors replaced by marks, {name: tensor}).

    Raises:
        TypeError: a value that is neither tensor, array nor JSON, or a key that is not a string.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, where: str) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            mark = _TENSOR if isinstance(value, Tensor) else _ARRAY
            # A copy of its own: safetensors refuses tensors that share memory.
            tensors[where] = torch.as_tensor(value).detach().cpu().clone().contiguous()
            return {mark: where}
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise TypeError(f"state{where}: the keys of a state must be strings")
            return {key: walk(inner, f"{where}.{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [walk(inner, f"{where}.{index}") for index, inner in enumerate(value)]
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"state{where}: {type(value).__name__} cannot be kept in a checkpoint")

    return walk(tree, ""), tensors


def rejoin(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `separate`; tuples come back as lists."""
    if isinstance(tree, dict):
        if tree.keys() == {_TENSOR}:
            return tensors[tree[_TENSOR]].clone()
        if tree.keys() == {_ARRAY}:
            return tensors[tree[_ARRAY]].clone().numpy()
        return {key: rejoin(inner, tensors) for key, inner in tree.items()}
    if isinstance(tree, list):
        return [rejoin(inner, tensors) for inner in tree]
    return tree
