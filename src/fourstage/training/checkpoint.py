"""Checkpoints: step folders, whole or absent, checked byte for byte before they are trusted.

    checkpoints/step-00000120/
      model.safetensors      optimiser.safetensors      average.safetensors (with ema)
      source.safetensors     the tensors a source holds (rollouts)
      state.json             step, counts, sums since the last row, best so far, source
      manifest.json          format, and size and sha256 of each of the above

Where the model is split over processes, each writes its parts: `model.00002.safetensors` ..., and
`parts.00002.json` says where they lie in the whole. Any layout reads what any other wrote. A folder
is written aside, flushed and renamed; the first process does that last. Nothing here is pickled.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from fourstage.errors import FailedElsewhere, InputError
from fourstage.files import atomic_folder, explained, read_json, sha256_file, write_json
from fourstage.parallel.group import Group
from fourstage.parallel.placement import Box, Placement
from fourstage.training.background import Background
from fourstage.training.parts import OwnParts, own_parts
from fourstage.training.tensorfiles import StoredTensors, rejoin, save_tensors, separate

_FOLDER = re.compile(r"step-(\d{8,})")
_TENSORS = re.compile(r"([a-z]+)(?:\.(\d{5,}))?\.safetensors")
_STATE, _MANIFEST = "state.json", "manifest.json"
FORMAT = 1


@dataclass
class Snapshot:
    """All that a bit-exact continuation needs.

    Attributes:
        tensors: file stem ("model", "optimiser", "average") -> {name: tensor}; a moment of a
            parameter is `<parameter>:<slot>`. Where the model is split, those of this process.
        state: JSON values of the trainer.
        source: what the source holds: tensors, arrays and JSON values, nested.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)


class Damaged(Exception):
    """A checkpoint that must not be trusted; the message names the file and the fault."""


class Checkpoints:
    """The checkpoints of one stage.

    Attributes:
        folder: where the step folders stand.
        keep: how many of the newest stay, beside the best.
        placement: how the model lies on the processes; None where this one holds all of it.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        say: Callable[[str], None] = print,
        placement: Placement | None = None,
    ):
        self.folder = folder
        self.keep = keep
        self.say = say
        self.placement = placement if placement is not None and placement.is_split else None
        # The threads that write speak beside the processes' other sums.
        self._writers = self.placement.mesh.world.beside() if self.placement else Group()
        self._writing = Background()
        self._damaged: set[int] = set()

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a folder, damaged or not, in rising order."""
        if not self.folder.exists():
            return []
        names = (_FOLDER.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def save(self, snapshot: Snapshot, best: int | None = None, also: Collection[int] = ()) -> Path:
        """Writes the checkpoint, then drops all but it, the newest, and those of `best` and `also`.

        Raises:
            MachineError: the disk is full or refuses; earlier checkpoints stay as they were.
        """
        self.save_soon(snapshot, best, also)
        self.wait()
        return self.path(snapshot.step)

    def save_soon(
        self, snapshot: Snapshot, best: int | None = None, also: Collection[int] = ()
    ) -> None:
        """As `save`, by a thread: training goes on as soon as everything is copied.

        Where the model is split, every process calls it at the same step.

        Raises:
            MachineError: the checkpoint before could not be written.
        """
        self.wait()
        tensors, boxes = own_parts(snapshot.tensors, self.placement)
        numbers, held = separate(snapshot.source)
        counted = copy.deepcopy(snapshot.state)
        state = {"step": snapshot.step, "state": counted, "source": numbers}
        if self._writers.writes:
            tensors["source"] = held

        def write() -> None:
            self._write(snapshot.step, tensors, boxes, state)
            if self._writers.writes:
                self._damaged.discard(snapshot.step)
                self._prune({best, *also})

        self._writing.start(write, f"checkpoint of step {snapshot.step}")

    def check(self) -> None:
        """Tells of a checkpoint that could not be written.

        Raises:
            MachineError: the disk is full or refuses; earlier checkpoints stay as they were.
        """
        self._writing.check()

    def wait(self) -> None:
        """Waits until what is being written stands on the disk.

        Raises:
            MachineError: the disk is full or refuses; earlier checkpoints stay as they were.
        """
        self._writing.wait()

    def close(self) -> None:
        """As `wait`, at the end of training, whatever brought it about."""
        self.wait()

    def _write(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        boxes: Mapping[str, Mapping[str, Box]],
        state: Mapping[str, Any],
    ) -> None:
        path, first = self.path(step), self._writers.writes
        with contextlib.ExitStack() as stack:
            aside = path.with_name(f".{path.name}.partial")

            def open_folder() -> None:
                if first:
                    stack.enter_context(atomic_folder(path))

            def write_parts() -> None:
                with explained(path):
                    _write_tensors(aside, tensors, boxes, self._writers.rank)
                    if self.placement is not None:
                        _write_index(aside, boxes, self._writers.rank)

            def close_folder() -> None:
                if first:
                    with explained(path):
                        write_json(aside / _STATE, state)
                        write_json(aside / _MANIFEST, _manifest(aside))
                    stack.close()

            for phase in (open_folder, write_parts, close_folder):
                self._together(phase, path)

    def _together(self, phase: Callable[[], None], path: Path) -> None:
        """Does its part of a phase, and waits for all; a failure anywhere ends it on all.

        Raises:
            MachineError: this process failed.
            FailedElsewhere: another one did.
        """
        error: Exception | None = None
        try:
            phase()
        except Exception as fault:
            error = fault
        failed = self._writers.lowest(math.inf if error is None else self._writers.rank)
        if error is not None:
            raise error
        if failed != math.inf:
            raise FailedElsewhere(f"process {failed:.0f} could not write its part of {path}")

    def _prune(self, others: set[int | None]) -> None:
        intact = [step for step in self.steps() if step not in self._damaged]
        kept = {*intact[-self.keep :], *others} - self._damaged
        for step in self.steps():
            if step not in kept:
                _remove(self.path(step))

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: training goes on from `step` another way."""
        self.wait()
        for later in self.steps():
            if later > step:
                _remove(self.path(later))

    def newest(self, at_most: float = math.inf) -> Snapshot | None:
        """The newest checkpoint that is intact, of step `at_most` or before; says which were
        passed over and why.

        Raises:
            InputError: it is of another format.
        """
        self.wait()
        self._sweep()
        passed_over = []
        for step in reversed([step for step in self.steps() if step <= at_most]):
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
        """Clears what a process killed while saving or removing left aside."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def read(self, step: int, is_checked: bool = False) -> Snapshot:
        """The checkpoint of `step`.

        Args:
            is_checked: another process has compared every byte.

        Raises:
            Damaged: a file is missing, cut short or changed.
            InputError: it is of another format.
        """
        path = self.path(step)
        files = _listed(path) if is_checked else _checked(path)
        try:
            content = read_json(path / _STATE)
            stored = _stored(path, files)
            source = rejoin(content["source"], stored.pop("source", {}))
            tensors: dict[str, Mapping[str, Tensor]] = dict(stored)
            if self.placement is not None:
                tensors = {stem: OwnParts(s, self.placement) for stem, s in stored.items()}
            return Snapshot(int(content["step"]), tensors, content["state"], source)
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise Damaged(f"unreadable: {error}") from error


def _remove(folder: Path) -> None:
    """Removes a checkpoint at one stroke: a kill half-way leaves none that looks damaged."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    with explained(folder):
        os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _write_tensors(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    boxes: Mapping[str, Mapping[str, Box]],
    rank: int,
) -> None:
    for stem, named in tensors.items():
        if named:
            part = f".{rank:05d}" if stem in boxes else ""
            save_tensors(folder / f"{stem}{part}.safetensors", named)


def _write_index(folder: Path, boxes: Mapping[str, Mapping[str, Box]], rank: int) -> None:
    """Says where a process's parts lie; flushes and hashes them, which no other could as well."""
    files = sorted(folder.glob(f"*.{rank:05d}.safetensors"))
    for path in files:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    places = {
        stem: {
            name: {"shape": b.shape, "offset": b.offset, "size": b.size} for name, b in of.items()
        }
        for stem, of in boxes.items()
    }
    write_json(folder / f"parts.{rank:05d}.json", {"files": _entries(files), "parts": places})


def _entries(paths: Iterable[Path]) -> dict[str, Any]:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in paths
    }


def _manifest(folder: Path) -> dict[str, Any]:
    """The files of a folder; what a process hashed as it wrote it is not read again."""
    files: dict[str, Any] = {}
    for path in folder.glob("parts.*.json"):
        files |= read_json(path)["files"]
    files |= _entries(path for path in folder.iterdir() if path.name not in files)
    return {"format": FORMAT, "files": dict(sorted(files.items()))}


def _stored(folder: Path, files: Iterable[str]) -> dict[str, StoredTensors]:
    """The tensors of each stem."""
    parts: dict[str, list[tuple[Path, Mapping[str, Box] | None]]] = {}
    for name in files:
        match = _TENSORS.fullmatch(name)
        if match is None:
            continue
        stem, rank = match.groups()
        boxes = None
        if rank is not None:
            places = read_json(folder / f"parts.{rank}.json")["parts"][stem]
            boxes = {
                key: Box(tuple(place["shape"]), tuple(place["offset"]), tuple(place["size"]))
                for key, place in places.items()
            }
        parts.setdefault(stem, []).append((folder / name, boxes))
    return {stem: StoredTensors(found) for stem, found in parts.items()}


def _listed(folder: Path) -> dict[str, tuple[int, str]]:
    """name -> size and hash, as the manifest has them.

    Raises:
        Damaged: it is missing or unreadable.
        InputError: the checkpoint is of another format.
    """
    try:
        manifest = read_json(folder / _MANIFEST)
        # The first format did not say that it is.
        written, files = manifest.get("format", 1), manifest["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError as error:
        raise Damaged("manifest.json is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged("manifest.json is unreadable") from error
    if written != FORMAT:
        raise InputError(
            f"{folder} is a checkpoint of format {written}, and this version of fourstage reads "
            f"format {FORMAT}: go on with the version that wrote it, or rename "
            f"{folder.parent.parent} to train anew"
        )
    if _STATE not in expected:
        raise Damaged("manifest.json is unreadable")
    return expected


def _checked(folder: Path) -> dict[str, tuple[int, str]]:
    """The files of the manifest, each of them there with its size and hash.

    Raises:
        Damaged: one is not.
    """
    expected = _listed(folder)
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{name} has {path.stat().st_size} of {size} bytes")
        if sha256_file(path) != digest:
            raise Damaged(f"{name} has changed since it was written")
    return expected
