"""Documents in columns: what a worker makes of its blocks, and what a part of the corpus holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fourstage import files

# Dropped documents that a part keeps to be looked at, a reason.
EXAMPLES = 5
COUNTERS = ("counts", "edits", "per_source", "shapes")


@dataclass
class Notes:
    """What happened to the rows and documents of some blocks, and why.

    Attributes:
        counts: "read", "rows", "empty", and each reason for which documents were dropped.
        edits: how often each cleaning step changed something.
        shapes: "shape\tfile" -> rows; to find the shape of a file's majority.
        bad: rows that cannot be used: {file, line, why}.
        examples: reason -> dropped documents: {file, line, text, detail}.
        hits: documents that hold a text they must not: {file, line, reference, words}.
        per_source: "what\tsource" -> how many.
    """

    counts: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    per_source: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    bad: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    hits: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Notes) -> None:
        for name in COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.bad += other.bad
        self.hits += other.hits
        for reason, rows in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += rows[: EXAMPLES - len(kept)]

    def drop(self, reason: str, file: str, line: int, text: str, detail: str = "") -> None:
        self.counts[f"dropped.{reason}"] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES:
            kept.append({"file": file, "line": line, "detail": detail, "text": text[:1000]})


@dataclass
class Documents:
    """Documents in reading order.

    Attributes:
        text: UTF-8 of all of them, end to end; document i is `text[offsets[i]:offsets[i + 1]]`.
        hashes: [n, 2] uint64 of the content.
        signatures: [n, permutations] uint32, their MinHash.
        characters: [n] of each. lines: [n] where each begins in its file.
        sources: [n] which source of the recipe.
        labels: [n] which of `names`: file, shape and language.
        span_documents, span_bounds, span_hashes, span_lines: passages: whose, [m, 2] from and to
            which character, hash, and whether it is a single line.
    """

    text: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    signatures: np.ndarray
    characters: np.ndarray
    lines: np.ndarray
    sources: np.ndarray
    labels: np.ndarray
    span_documents: np.ndarray
    span_bounds: np.ndarray
    span_hashes: np.ndarray
    span_lines: np.ndarray
    names: list[tuple[str, str, str]]

    def __len__(self) -> int:
        return len(self.lines)


_COLUMNS = [name for name in Documents.__dataclass_fields__ if name != "names"]


def joined(parts: Sequence[Documents]) -> Documents:
    """The documents of all parts, in order."""
    columns: dict[str, Any] = {}
    firsts = np.cumsum([0, *map(len, parts)])
    names: dict[tuple[str, str, str], int] = {}
    labels = []
    for part in parts:
        places = [names.setdefault(name, len(names)) for name in part.names]
        labels.append(np.array(places, np.int32)[part.labels])
    for name in _COLUMNS:
        arrays = [getattr(part, name) for part in parts]
        if name == "offsets":
            starts = np.cumsum([0, *(int(each[-1]) for each in arrays)])
            shifted = [each[1:] + s for each, s in zip(arrays, starts, strict=False)]
            arrays = [np.zeros(1, np.int64), *shifted]
        elif name == "labels":
            arrays = labels
        elif name == "span_documents":
            arrays = [each + first for each, first in zip(arrays, firsts, strict=False)]
        columns[name] = np.concatenate(arrays)
    return Documents(**columns, names=list(names))


def write_part(path: Path, documents: Documents, notes: Notes) -> None:
    """Writes a part, whole or not at all."""
    from safetensors.numpy import save

    told = {"names": documents.names, "notes": vars(notes)}
    content = json.dumps(told, ensure_ascii=True).encode()
    columns = {name: np.ascontiguousarray(getattr(documents, name)) for name in _COLUMNS}
    files.write_bytes(path, save(columns | {"told": np.frombuffer(content, np.uint8)}))


class Part:
    """A part as it lies on disk; a column is read when it is asked for.

    Attributes:
        names: (file, shape, language) of each label.
        notes: what happened on the way.
    """

    def __init__(self, path: Path):
        self.path = path
        told = json.loads(self.column("told").tobytes())
        self.names = [tuple(name) for name in told["names"]]
        self.notes = Notes()
        for name, value in told["notes"].items():
            setattr(self.notes, name, Counter(value) if name in COUNTERS else value)

    def column(self, name: str) -> np.ndarray:
        from safetensors import safe_open

        with safe_open(self.path, framework="numpy") as file:
            return file.get_tensor(name)

    def some_texts(self, chosen: np.ndarray) -> Iterator[str]:
        """The text of a few documents; the others are not read."""
        from safetensors import safe_open

        offsets = self.column("offsets")
        with safe_open(self.path, framework="numpy") as file:
            text = file.get_slice("text")
            for i in chosen.tolist():
                content = text[int(offsets[i]) : int(offsets[i + 1])].tobytes()
                yield content.decode("utf-8", "surrogatepass")

    def texts(self, chosen: np.ndarray | None = None) -> Iterator[str]:
        """The text of each document, or of the chosen ones."""
        text, offsets = self.column("text"), self.column("offsets")
        whole = range(len(offsets) - 1) if chosen is None else chosen.tolist()
        for i in whole:
            yield text[offsets[i] : offsets[i + 1]].tobytes().decode("utf-8", "surrogatepass")
