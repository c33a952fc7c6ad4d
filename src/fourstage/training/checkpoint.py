"""Checkpoints: step folders, whole or absent, checked byte for byte before they are trusted.

    checkpoints/step-00000120/
      model.safetensors      optimiser.safetensors      average.safetensors (with ema)
      source.safetensors     the tensors a source holds (rollouts)
      state.json             step, counts, sums since the last row, best so far, source
      manifest.json          size and sha256 of each of the above

A folder is written aside, flushed and renamed. Nothing here is pickled.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourstage.files import atomic_folder, read_json, sha256_file, write_json

_FOLDER = re.compile(r"step-(\d{8,})")
_TENSOR, _ARRAY = "tensor of this checkpoint", "array of this checkpoint"


@dataclass
class Snapshot:
    """All that a bit-exact continuation needs.

    Attributes:
        tensors: file stem ("model", "optimiser", "average") -> {name: tensor}.
        state: JSON values of the trainer.
        source: what the source holds: tensors, arrays and JSON values, nested.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)


class Damaged(Exception):
    """A checkpoint that must not be trusted; the message names the file and the fault."""


class Checkpoints:
    """The checkpoints of one stage.

    Attributes:
        folder: where the step folders stand.
        keep: how many of the newest stay, beside the best.
    """

    def __init__(self, folder: Path, keep: int = 2, say: Callable[[str], None] = print):
        self.folder = folder
        self.keep = keep
        self.say = say
        self._damaged: set[int] = set()

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a folder, damaged or not, in rising order."""
        if not self.folder.exists():
            return []
        names = (_FOLDER.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def save(self, snapshot: Snapshot, best: int | None = None) -> Path:
        """Writes the checkpoint, then drops all but it, the newest and the `best` step's.

        Raises:
            MachineError: the disk is full or refuses; earlier checkpoints stay as they were.
        """
        path = self.path(snapshot.step)
        numbers, held = separate(snapshot.source)
        files = {**snapshot.tensors, "source": held}
        with atomic_folder(path) as aside:
            for stem, tensors in files.items():
                if tensors:
                    save_tensors(aside / f"{stem}.safetensors", tensors)
            state = {"step": snapshot.step, "state": snapshot.state, "source": numbers}
            write_json(aside / "state.json", state)
            write_json(aside / "manifest.json", _manifest(aside))
        self._damaged.discard(snapshot.step)
        self._prune(best)
        return path

    def _prune(self, best: int | None) -> None:
        intact = [step for step in self.steps() if step not in self._damaged]
        kept = {*intact[-self.keep :], best} - self._damaged
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is intact; says which were passed over and why."""
        self._sweep()
        passed_over = []
        for step in reversed(self.steps()):
            try:
                snapshot = self.read(step)
            except Damaged as fault:
                self._damaged.add(step)
                passed_over.append(f"checkpoint {self.path(step).name} is damaged ({fault})")
                continue
            self._tell(passed_over, f"going on from step {step}")
            return snapshot
        self._tell(passed_over, "starting from the beginning")
        return None

    def _tell(self, passed_over: list[str], outcome: str) -> None:
        for index, line in enumerate(passed_over, 1):
            self.say(line + ("; " + outcome if index == len(passed_over) else "; passed over"))

    def _sweep(self) -> None:
        """Clears what a process killed while saving left aside."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def read(self, step: int) -> Snapshot:
        """The checkpoint of `step`.

        Raises:
            Damaged: a file is missing, cut short or changed.
        """
        path = self.path(step)
        manifest = _checked(path)
        try:
            content = read_json(path / "state.json")
            stems = [name.removesuffix(".safetensors") for name in manifest]
            tensors = {
                stem: load_file(path / f"{stem}.safetensors")
                for stem in stems
                if stem != "state.json"
            }
            held = tensors.pop("source", {})
            source = rejoin(content["source"], held)
            return Snapshot(int(content["step"]), tensors, content["state"], source)
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise Damaged(f"unreadable: {error}") from error


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


def _manifest(folder: Path) -> dict[str, Any]:
    return {
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(folder.iterdir())
        }
    }


def _checked(folder: Path) -> dict[str, Any]:
    """The files of the manifest, each of them there with its size and hash.

    Raises:
        Damaged: one is not.
    """
    try:
        files = read_json(folder / "manifest.json")["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError as error:
        raise Damaged("manifest.json is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged("manifest.json is unreadable") from error
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{name} has {path.stat().st_size} of {size} bytes")
        if sha256_file(path) != digest:
            raise Damaged(f"{name} has changed since it was written")
    if "state.json" not in expected:
        raise Damaged("manifest.json is unreadable")
    return files


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
