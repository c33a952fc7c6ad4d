"""A store: examples on disk as memory maps, with a hash of every file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fourstage import files
from fourstage.data.batch import Example
from fourstage.data.tokens import TokenRows
from fourstage.errors import InputError

_INDEX = "index.json"
# Examples gathered before they are written: large enough to be one array operation.
_CHUNK = 4096


class Store:
    """Examples by number. `tokens` and `mask` are memory maps; nothing is read until asked for.

    Attributes:
        lengths: [len] tokens of each example, int64.
        tokens_total: their sum.
        hash: of all the files; equal stores have equal hashes wherever they lie.
        sources: [len] uint16, which of `source_names` each example is of; zeros where all are one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.index: dict[str, Any] = files.read_json(folder / _INDEX)
        self.hash = files.sha256_json(self.index)
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
        self.lengths = np.diff(self.offsets)
        self.tokens_total = int(self.offsets[-1])
        self.tokens = _map(folder / "tokens.bin", self.index["dtype"])
        self.mask = _map(folder / "mask.bin", "bool") if self.index["masked"] else None
        self.source_names: list[str] = self.index.get("sources", [])
        if self.source_names:
            self.sources = np.load(folder / "sources.npy", mmap_mode="r", allow_pickle=False)
        else:
            self.sources = np.zeros(len(self.lengths), np.uint16)
        self._rows = None
        if self.index["rows"]:
            self._row_offsets = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
            self._rows = _map(folder / "rows.jsonl", "uint8")

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Opens what `write_store` wrote, and checks that its files have the sizes they had.

        Raises:
            InputError: there is no store, or one of its files is missing or was cut.
        """
        try:
            store = cls(Path(folder))
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, FileNotFoundError):
                raise InputError(
                    f"{folder} holds no prepared data: run `fourstage prepare`"
                ) from error
            raise InputError(f"{folder} is damaged ({error}): remove it and run again") from error
        sizes = store.index.get("bytes", {})
        for name, size in sizes.items():
            found = (folder / name).stat().st_size
            if found != size:
                raise InputError(
                    f"{folder / name} is damaged: it has {found} bytes and was written with "
                    f"{size}; remove {folder} and run again"
                )
        return store

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.span(index % len(self), 0, None)

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def span(self, index: int, start: int, stop: int | None) -> Example:
        """Tokens `start` to `stop` of one example."""
        first, last = int(self.offsets[index]), int(self.offsets[index + 1])
        where = slice(first + start, last if stop is None else min(last, first + stop))
        mask = None if self.mask is None else np.array(self.mask[where])
        return Example(np.asarray(self.tokens[where], np.int64), mask)

    def row(self, index: int) -> dict[str, Any]:
        """What was stored beside the example; empty when nothing was."""
        if self._rows is None:
            return {}
        first, last = int(self._row_offsets[index]), int(self._row_offsets[index + 1])
        return json.loads(bytes(self._rows[first:last]))

    def trained_total(self) -> int:
        """How many tokens are trained: all but the first of each, or those of the masks."""
        if self.mask is None:
            return int((self.lengths - 1).sum())
        starts = self.offsets[:-1][self.lengths > 0]
        return int(np.count_nonzero(self.mask) - np.count_nonzero(self.mask[starts]))

    def damaged(self) -> list[str]:
        """Files whose content is no longer what was written; reads them whole."""
        recorded = self.index["sha256"]
        return [name for name, h in recorded.items() if files.sha256_file(self.folder / name) != h]

    def intact(self) -> bool:
        """Whether every file still has the content that was written."""
        return not self.damaged()


def _map(path: Path, dtype: str) -> np.ndarray:
    # An empty file cannot be mapped.
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _tokens_of(example: Example | Sequence[int]) -> np.ndarray | Sequence[int]:
    return example.tokens if isinstance(example, Example) else example


def _write_tokens(file: BinaryIO, chunk: list[Any], dtype: str) -> list[int]:
    """Appends the tokens of `chunk`; returns their counts.

    Raises:
        ValueError: a token does not fit the vocabulary.
    """
    parts = [_tokens_of(example) for example in chunk]
    lengths = [len(part) for part in parts]
    flat = np.fromiter(chain.from_iterable(parts), np.int64, sum(lengths))
    if flat.size and (flat.min() < 0 or flat.max() > np.iinfo(dtype).max):
        raise ValueError(f"token {int(flat.max())} does not fit a store of {dtype}")
    file.write(flat.astype(dtype).tobytes())
    return lengths


def write_store(
    folder: Path,
    examples: Iterable[Example | Sequence[int]],
    extra: Iterable[dict[str, Any]] | None = None,
    *,
    vocab_size: int = 2**32,
    masked: bool = False,
) -> Store:
    """Writes a store, whole or not at all; `folder` is replaced.

    Args:
        examples: rows, or bare token lists, whose tokens all count.
        extra: one JSON object beside each example.
        vocab_size: decides how wide a token is stored: two bytes up to 65,536.
        masked: whether to keep loss masks; an example without one is trained whole.
    """
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    names = ["tokens.bin", "offsets.npy", *(["mask.bin"] if masked else [])]
    with files.atomic_folder(Path(folder)) as aside:
        lengths: list[int] = []
        with open(aside / "tokens.bin", "wb") as tokens, open(aside / "mask.bin", "wb") as masks:
            for chunk in _chunks(examples):
                lengths += _write_tokens(tokens, chunk, dtype)
                if masked:
                    masks.write(np.concatenate([example.trained() for example in chunk]).tobytes())
        if not masked:
            (aside / "mask.bin").unlink()
        np.save(aside / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
        if extra is not None:
            names += ["rows.jsonl", "rows.npy"]
            _write_rows(aside, extra, len(lengths))
        _write_index(aside, names, len(lengths), sum(lengths), dtype, masked, extra is not None)
    return Store.open(folder)


def write_token_store(
    folder: Path, chunks: Iterable[TokenRows], vocab_size: int, source_names: list[str]
) -> Store:
    """Writes a store of rows whose tokens all count, whole or not at all; `folder` is replaced.

    Raises:
        ValueError: a token does not fit the vocabulary.
    """
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    lengths, sources = [np.zeros(1, np.int64)], [np.zeros(0, np.uint16)]
    with files.atomic_folder(Path(folder)) as aside:
        with open(aside / "tokens.bin", "wb") as file:
            for chunk in chunks:
                if chunk.tokens.size and int(chunk.tokens.max()) >= vocab_size:
                    raise ValueError(f"token {int(chunk.tokens.max())} of {vocab_size}")
                file.write(chunk.tokens.astype(dtype).tobytes())
                lengths.append(chunk.lengths.astype(np.int64))
                sources.append(chunk.sources)
        offsets = np.cumsum(np.concatenate(lengths))
        np.save(aside / "offsets.npy", offsets)
        np.save(aside / "sources.npy", np.concatenate(sources).astype(np.uint16))
        names = ["tokens.bin", "offsets.npy", "sources.npy"]
        count, total = len(offsets) - 1, int(offsets[-1])
        _write_index(aside, names, count, total, dtype, False, False, source_names)
    return Store.open(folder)


def _write_index(
    folder: Path,
    names: list[str],
    examples: int,
    tokens: int,
    dtype: str,
    masked: bool,
    rows: bool,
    sources: Sequence[str] = (),
) -> None:
    index: dict[str, Any] = {
        "examples": examples,
        "tokens": tokens,
        "dtype": dtype,
        "masked": masked,
        "rows": rows,
        "bytes": {name: (folder / name).stat().st_size for name in names},
        "sha256": {name: files.sha256_file(folder / name) for name in names},
    }
    if sources:
        index["sources"] = list(sources)
    files.write_json(folder / _INDEX, index)


def _write_rows(folder: Path, rows: Iterable[dict[str, Any]], count: int) -> None:
    offsets = [0]
    with open(folder / "rows.jsonl", "wb") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            offsets.append(offsets[-1] + len(line))
    if len(offsets) - 1 != count:
        raise ValueError(f"{len(offsets) - 1} rows beside {count} examples")
    np.save(folder / "rows.npy", np.array(offsets, np.int64))
