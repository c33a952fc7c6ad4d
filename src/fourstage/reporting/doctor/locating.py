"""The files that a person asked about, by the paths they wrote."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourstage.data.reading import RawFile, find_files
from fourstage.data.reading.finding import is_junk
from fourstage.errors import InputError

_FIELD = "inspect data"


@dataclass(frozen=True)
class Asked:
    """A file on disk.

    Attributes:
        path: as the person wrote it; below a folder that was given, joined with its path.
    """

    file: RawFile
    path: str


@dataclass
class Located:
    """Files in the order of the paths, each once.

    Attributes:
        passed: paths that were passed over. folders: those of the paths that are folders.
    """

    files: list[Asked]
    passed: list[str]
    folders: list[str]


def locate(given: Sequence[str]) -> Located:
    """The files at some paths: files, folders or hub ids.

    Raises:
        InputError: a path that does not exist, or a data set that the hub does not give.
    """
    _refuse_missing(given)
    located = Located([], [], [path for path in given if os.path.isdir(path)])
    seen: set[Path] = set()
    for path in given:
        for asked in _at(path, located.passed):
            real = asked.file.path.resolve()
            if real not in seen:
                seen.add(real)
                located.files.append(asked)
    return located


def _refuse_missing(given: Sequence[str]) -> None:
    """Raises the faults of all missing paths together.

    Raises:
        InputError: there is one.
    """
    faults: list[str] = []
    for path in given:
        if not path:
            faults.append(f"{_FIELD}: an empty path; write . for this folder")
        elif not path.startswith("hf:") and not os.path.exists(path):
            try:
                find_files(path, _FIELD)
            except InputError as error:
                faults += error.faults
    if faults:
        raise InputError(*faults)


def _at(path: str, passed: list[str]) -> Iterator[Asked]:
    if path.startswith("hf:"):
        found, left = find_files(path, _FIELD)
        yield from (Asked(file, f"{path}/{file.path.name}") for file in found)
        passed += left
    elif not os.path.isdir(path):
        yield Asked(RawFile(Path(path), Path(path).name), path)
    else:
        yield from _below(path, passed)


def _below(folder: str, passed: list[str]) -> Iterator[Asked]:
    try:
        found, left = find_files(folder, _FIELD)
    except InputError as error:
        # Nothing to read is a finding here, not a fault.
        passed += error.faults
        return
    for file in found:
        yield Asked(file, os.path.join(folder, file.path.relative_to(folder)))
    for name in left:
        path = os.path.join(folder, name)
        if is_closed(path) and not is_junk(name):
            yield Asked(RawFile(Path(path), name), path)
        else:
            passed.append(path)


def is_closed(path: str) -> bool:
    """Whether it is a regular file that may not be read."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode) and not os.access(path, os.R_OK)
    except OSError:
        return False
