"""Pass 3: kept documents to token stores, part by part side by side, going on after a kill."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fourstage import files
from fourstage.data.corpus import Corpus
from fourstage.data.crew import Crew
from fourstage.data.store import Store, write_token_store
from fourstage.data.tokens import SPLITS, Encoder, TokenRows
from fourstage.tokenizer import Tokenizer

# Rows of parts, until the stores are written from them.
_ASIDE = ".encoded"


def write_shards(folder: Path, corpus: Corpus, tokenizer: Path, workers: int) -> dict[str, Store]:
    """Writes the stores of both splits below `folder`; rows of a killed run are kept.

    Args:
        tokenizer: the folder it lies in.
    """
    encode_parts(folder, corpus, tokenizer, range(corpus.parts), workers)
    aside = folder / _ASIDE
    size = Tokenizer.load(tokenizer).vocab_size
    stores = {
        split: write_token_store(
            folder / split, _read(aside, corpus.parts, split), size, corpus.names
        )
        for split in SPLITS
    }
    shutil.rmtree(aside)
    return stores


def encode_parts(
    folder: Path, corpus: Corpus, tokenizer: Path, numbers: Iterable[int], workers: int
) -> None:
    """Encodes those of the parts `numbers` whose rows `folder` lacks, for `write_shards`."""
    aside = folder / _ASIDE
    aside.mkdir(parents=True, exist_ok=True)
    missing = [number for number in numbers if not _path(aside, number).exists()]
    crew = Crew(functools.partial(Encoder, corpus.folder, tokenizer), workers)
    for number, rows in zip(missing, crew.answers(missing), strict=True):
        _write(_path(aside, number), rows)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def _write(path: Path, rows: dict[str, TokenRows]) -> None:
    from safetensors.numpy import save

    columns = {f"{split}.{name}": c for split, r in rows.items() for name, c in vars(r).items()}
    files.write_bytes(path, save({k: np.ascontiguousarray(c) for k, c in columns.items()}))


def _read(folder: Path, parts: int, split: str) -> Iterator[TokenRows]:
    from safetensors import safe_open

    names = ("tokens", "lengths", "sources")
    for number in range(parts):
        with safe_open(_path(folder, number), framework="numpy") as file:
            yield TokenRows(*(file.get_tensor(f"{split}.{name}") for name in names))
