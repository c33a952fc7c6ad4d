"""Raw files: which there are below the paths that a person gave, and their content by hash."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fourstage import files
from fourstage.data.reading import hub
from fourstage.errors import InputError, nearest

_JUNK = {
    "__macosx",
    "__pycache__",
    "node_modules",
    "thumbs.db",
    "desktop.ini",
    "ehthumbs.db",
    "dataset_dict.json",
}
_JUNK_ENDS = (".lock", ".swp", ".part", ".crdownload", "~")
# Beside the Arrow files of a folder saved by `datasets`.
_SAVED = {"dataset_info.json", "state.json"}


@dataclass(frozen=True)
class RawFile:
    """A file of the data: where it lies, and its name from the data path down."""

    path: Path
    name: str


def as_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]


def is_junk(name: str) -> bool:
    """Whether a path (with `/`) leads to what systems and editors leave behind, not data."""
    parts = name.lower().split("/")
    if any(part in _JUNK or part.startswith(".") for part in parts):
        return True
    last = parts[-1]
    # Copies that `datasets` keeps of what it computed; the data itself is in data-*.arrow.
    is_cache = last.startswith("cache-") and last.endswith(".arrow")
    return is_cache or last.endswith(_JUNK_ENDS) or last.startswith("~$")


def shown(name: str) -> str:
    """A name on one line: control characters and bytes that are no text are escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_files(
    paths: str | Path | Sequence[str | Path], field: str
) -> tuple[list[RawFile], list[str]]:
    """Regular files at `paths`, sorted by name, and the names of what was passed over.

    Passed over are junk, links (what they lead to is read where it lies, if that is below the
    path), files and folders that may not be read, and what is no regular file. Each file is read
    once, even if several paths lead to it.

    Args:
        paths: files, folders or hub ids `hf:OWNER/NAME[:CONFIG][@SPLIT]`.
        field: the recipe's key, for messages.

    Raises:
        InputError: a path that does not exist, or a folder with nothing to read in it.
    """
    chosen: list[RawFile] = []
    passed: list[str] = []
    faults: list[str] = []
    seen: set[Path] = set()
    roots = as_paths(paths)
    for number, root in enumerate(roots):
        prefix = f"{number}/" if len(roots) > 1 else ""
        try:
            found, left = _below(root, field)
        except InputError as error:
            faults += error.faults
            continue
        for path, name in found:
            real = path.resolve()
            if real in seen:
                passed.append(prefix + name)
            else:
                seen.add(real)
                chosen.append(RawFile(path, prefix + name))
        passed += [prefix + name for name in left]
    if faults:
        raise InputError(*faults)
    return chosen, passed


def _below(root: Path, field: str) -> tuple[list[tuple[Path, str]], list[str]]:
    """(path, name) of the files at one path, and the names passed over.

    Raises:
        InputError: there is no such path, or nothing to read.
    """
    if hub.is_hub_id(root):
        return hub.dataset_files(str(root), field), []
    try:
        mode = root.stat().st_mode
    except OSError:
        raise InputError(_missing(root, field)) from None
    if stat.S_ISREG(mode):
        return [(root, shown(root.name))], []
    if not stat.S_ISDIR(mode):
        raise InputError(f"{field}={root}: neither a file nor a folder; give one of these")
    found, passed = [], []
    for path, name, is_data in sorted(_walk(root, ""), key=lambda each: each[1]):
        if is_data:
            found.append((path, shown(name)))
        else:
            passed.append(shown(name))
    if not found:
        has = f" (it has {passed[0]}, which is passed over)" if passed else ""
        raise InputError(
            f"{field}={root}: nothing to read in this folder{has}; put files of text or rows "
            "there (links out of a folder are not followed: give the place they lead to)"
        )
    return found, passed


def _walk(folder: Path, prefix: str) -> Iterator[tuple[Path, str, bool]]:
    """(path, name, whether it is data) of all that lies below a folder; no link is followed."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        yield folder, prefix, False
        return
    names = {entry.name for entry in entries}
    saved = _SAVED if names >= _SAVED else set()
    for entry in entries:
        name, path = prefix + entry.name, Path(entry.path)
        if is_junk(entry.name) or entry.name in saved or entry.is_symlink():
            yield path, name, False
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(path, name + "/")
        else:
            regular = entry.is_file(follow_symlinks=False)
            yield path, name, regular and os.access(path, os.R_OK)


def _missing(path: Path, field: str) -> str:
    if os.path.islink(path):
        return f"{field}={path}: a link to what does not exist, or to itself"
    siblings = []
    if os.path.isdir(path.parent) and os.access(path.parent, os.R_OK | os.X_OK):
        siblings = [str(path.parent / sibling.name) for sibling in path.parent.iterdir()]
    return f"{field}={path}: no such file or folder{nearest(str(path), siblings)}"


def raw_hashes(raw: Iterable[RawFile]) -> dict[str, str]:
    """Content hash of each file by its name; the place of the data does not count.

    Raises:
        InputError: a file that cannot be read.
    """
    hashes = {}
    for file in raw:
        try:
            state = file.path.stat()
            hashes[file.name] = _hash(file.path, state.st_size, state.st_mtime_ns)
        except OSError as error:
            raise InputError(f"cannot read {file.path}: {error.strerror}") from error
    return hashes


@lru_cache(maxsize=65536)
def _hash(path: Path, size: int, changed: int) -> str:
    """Of a file as it is now; a run asks for it once a stage, and it may be large."""
    return files.sha256_file(path)
