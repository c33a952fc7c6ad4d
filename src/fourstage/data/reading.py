"""Raw files: which there are, their text, and the rows in them with the line each stands on."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fourstage import files
from fourstage.errors import InputError, nearest

TEXT = (".txt", ".md", ".text", ".markdown")
LINES = (".jsonl", ".ndjson")
LIST = (".json",)
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
# More faults than these help nobody.
_MOST_FAULTS = 5


@dataclass(frozen=True)
class RawFile:
    """A file of the data: where it lies, and its name from the data path down."""

    path: Path
    name: str

    @property
    def suffix(self) -> str:
        """What the name ends in, without `.gz`."""
        return Path(self.name.lower().removesuffix(".gz")).suffix

    @property
    def holds_rows(self) -> bool:
        return self.suffix in LINES + LIST


def is_readable(name: str) -> bool:
    return Path(name.lower().removesuffix(".gz")).suffix in TEXT + LINES + LIST


def as_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]


def find_files(
    paths: str | Path | Sequence[str | Path], field: str
) -> tuple[list[RawFile], list[str]]:
    """Files of text and rows at `paths`, sorted by name, and the names of those passed over.

    Args:
        paths: files or folders; hidden files are ignored.
        field: the recipe's key, for messages.

    Raises:
        InputError: a path that does not exist, or a folder with nothing to read in it.
    """
    chosen: list[RawFile] = []
    skipped: list[str] = []
    faults: list[str] = []
    roots = as_paths(paths)
    for number, root in enumerate(roots):
        prefix = f"{number}/" if len(roots) > 1 else ""
        if root.is_file():
            chosen.append(RawFile(root, prefix + root.name))
            continue
        if not root.is_dir():
            faults.append(_missing(root, field))
            continue
        names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        names = [name for name in names if not any(p.startswith(".") for p in name.split("/"))]
        readable = [name for name in names if is_readable(name)]
        skipped += [prefix + name for name in names if name not in set(readable)]
        chosen += [RawFile(root / name, prefix + name) for name in readable]
        if not readable:
            faults.append(
                f"{field}={root}: nothing to read in this folder; put .txt, .md, .jsonl or .json "
                f"files (or .gz of them) there{f' (it has {names[0]})' if names else ''}"
            )
    if faults:
        raise InputError(*faults)
    return chosen, skipped


def _missing(path: Path, field: str) -> str:
    siblings = []
    if path.parent.is_dir():
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


def read_bytes(file: RawFile) -> bytes:
    """Content, unpacked where it is gzipped.

    Raises:
        InputError: it cannot be read or unpacked.
    """
    try:
        content = file.path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file.path} is a broken gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {file.path}: {error.strerror or error}") from error


def read_text(file: RawFile) -> str:
    """Text with `\\n` line ends and without a byte order mark.

    Raises:
        InputError: it cannot be read, is binary, or is not UTF-8 (UTF-16 needs its mark).
    """
    content = read_bytes(file)
    mark = next((m for m in _BOMS if content.startswith(m)), None)
    if mark is None and b"\0" in content[:8192]:
        raise InputError(f"{file.path} is binary, not text: leave it out of the data")
    try:
        text = content.decode(_BOMS[mark] if mark else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file.path} is not UTF-8 text (byte {error.start}): convert it, for Chinese often "
            f"with `iconv -f GB18030 -t UTF-8`, or leave it out"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class RawRow:
    """A JSON value of a file, and `file:line` of where it begins."""

    value: Any
    where: str


def read_rows(file: RawFile) -> Iterator[RawRow]:
    """Rows of a JSONL file, or of a JSON list (which may lie under the one key of an object).

    Raises:
        InputError: broken JSON, with the file and line.
    """
    text = read_text(file)
    start = text.lstrip()[:1]
    # Files called .json often hold JSON lines.
    one_line = "\n" not in text.strip()
    if start == "[" and (file.suffix in LIST or one_line):
        yield from _list_rows(text, text.index("[") + 1, file)
        return
    if file.suffix in LIST and start == "{":
        inner = _only_list(text)
        if inner is not None:
            yield from (RawRow(value, f"{file.path}:1") for value in inner)
            return
    yield from _line_rows(text, file)


def _only_list(text: str) -> list[Any] | None:
    """The list of an object that has a single list of objects, such as {"data": [...]}."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    known = {"messages", "conversations"} & set(value)
    return lists[0] if len(lists) == 1 and not known else [value]


def _line_rows(text: str, file: RawFile) -> Iterator[RawRow]:
    faults = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield RawRow(json.loads(line), f"{file.path}:{number}")
        except ValueError as error:
            reason = getattr(error, "msg", str(error))
            faults.append(f"{file.path}:{number}: broken JSON: {reason}; each line is one object")
    raise_faults(faults)


def _list_rows(text: str, at: int, file: RawFile) -> Iterator[RawRow]:
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    while True:
        while at < len(text) and text[at] in " \t\n,":
            at += 1
        if text[at : at + 1] == "]":
            return
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            here = line + text.count("\n", at, getattr(error, "pos", at))
            raise InputError(f"{file.path}:{here}: broken JSON: {reason}") from error
        yield RawRow(value, f"{file.path}:{line}")
        at = end


def raise_faults(faults: list[str]) -> None:
    """Raises the first faults together, and how many more there are.

    Raises:
        InputError: there is any.
    """
    if not faults:
        return
    shown = faults[:_MOST_FAULTS]
    if len(faults) > len(shown):
        shown.append(f"... and {len(faults) - len(shown)} more faults of this kind")
    raise InputError(*shown)
