"""Replay: text of an earlier training, read beside a run's own so that it is not forgotten.

It is at most about as much as one's own, and stands behind that in one store, as another source.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from fourstage import files
from fourstage.data.corpus import build_corpus, corpus_inputs
from fourstage.data.encoding import document_rows
from fourstage.data.prepared import PreparedData
from fourstage.data.store import Store, write_token_store
from fourstage.data.tokens import TokenRows
from fourstage.errors import InputError
from fourstage.recipe.data import REPLAY, Data
from fourstage.tokenizer import Tokenizer

# Held-out documents of the earlier text that forgetting is measured on.
_HELD_OUT = 2000
_MEASURED_ON = 200
# Rows that are one piece of a store as it is written.
_ROWS = 4096


@dataclass(frozen=True)
class _Earlier:
    """Rows of tokens to train on, and texts of documents held out."""

    rows: Iterable[list[int]]
    held_out: Iterable[str]


def replay_inputs(data: Data) -> dict[str, Any]:
    """All that decides what is replayed, by content; nothing where nothing is.

    Raises:
        InputError: a path that does not exist, or a run that holds no prepared text.
    """
    if data.replay is None:
        return {}
    run = _earlier_run(data)
    if run is None:
        with _named():
            return corpus_inputs(_as_text(data))
    stores = {split: _store(run, split).hash for split in ("train", "validation")}
    return {"raw": stores, "tokenizer": files.sha256_folder(run / "tokenizer")}


def add_replay(data: Data, prepared: PreparedData, own: Store) -> tuple[Store, dict[str, Any]]:
    """Puts the text that `data.replay` names behind one's own; the store of both, and a report.

    Raises:
        InputError: nothing can be read, or too little.
    """
    tokenizer, run = prepared.tokenizer(), _earlier_run(data)
    if run is not None:
        earlier = _of_run(run, tokenizer, own.tokens_total)
    else:
        earlier = _of_files(data, prepared.folder / REPLAY, tokenizer, own.tokens_total)
    names = [*(own.source_names or ["own"]), REPLAY]
    before, documents = own.tokens_total, len(own)
    rows = chain(_rows_of(own), _gathered(earlier.rows, len(names) - 1))
    both = write_token_store(own.folder, rows, tokenizer.vocab_size, names)
    held_out = ({"text": text} for text in islice(earlier.held_out, _HELD_OUT))
    report = {
        "train": len(both) - documents,
        "train_tokens": both.tokens_total - before,
        "validation": files.write_lines(own.folder.with_name(f"{REPLAY}.jsonl"), held_out),
    }
    return both, report


def own_tokens(store: Store) -> int:
    """Tokens of a store that `add_replay` wrote, but for the replayed ones."""
    own = store.sources != store.source_names.index(REPLAY)
    return int(store.lengths[own].sum())


@contextlib.contextmanager
def _named() -> Generator[None]:
    """Faults of the earlier text are those of the key that names it."""
    try:
        yield
    except InputError as error:
        faults = (fault.replace("data.pretrain", "data.replay.from") for fault in error.faults)
        raise InputError(*faults) from error


def _as_text(data: Data) -> Data:
    """The files to replay as the text of a run: cleaned and deduplicated as one's own is.

    What chooses among one's own text, or reads its rows, says nothing of another.
    """
    told = data.model_dump(exclude={"replay", "mixture", "map", "key", "languages", "quality"})
    return Data.model_validate({**told, "pretrain": data.paths(REPLAY)})


def _earlier_run(data: Data) -> Path | None:
    """The run whose prepared text is replayed; None where files are named.

    Raises:
        InputError: it holds no prepared text, or stands beside other paths.
    """
    paths = [Path(path) for path in data.paths(REPLAY)]
    run = next((path for path in paths if (path / "run.json").is_file()), None)
    if run is None:
        return None
    if len(paths) > 1:
        raise InputError(
            f"data.replay.from names the run {run} beside other text: name it alone, or the files "
            "of its text"
        )
    if not (run / "data" / "pretrain" / "train" / "index.json").is_file():
        raise InputError(
            f"data.replay.from={run} is a run without prepared text: name the files of its text, "
            "or run `fourstage prepare` there again"
        )
    return run


def _store(run: Path, split: str) -> Store:
    return PreparedData(run).store("pretrain", split)


def _of_run(run: Path, tokenizer: Tokenizer, most: int) -> _Earlier:
    """Documents of an earlier run, spread evenly over its text, in the tokens of this one."""
    store, theirs = _store(run, "train"), PreparedData(run).tokenizer()
    every = max(1, -(-store.tokens_total // most))
    rows = (store[index].tokens.tolist() for index in range(0, len(store), every))
    if not theirs.is_same_as(tokenizer):
        rows = document_rows(tokenizer, (theirs.decode(ids) for ids in rows))
    return _Earlier(rows, (document["text"] for document in PreparedData(run).documents()))


def _of_files(data: Data, folder: Path, tokenizer: Tokenizer, most: int) -> _Earlier:
    """Documents of files, spread evenly over them."""
    with _named():
        corpus, _ = build_corpus(_as_text(data), folder)
    some = list(islice(corpus.texts("train"), _MEASURED_ON))
    tokens = sum(map(len, tokenizer.encode_batch(some)))
    characters = math.ceil(most * sum(map(len, some)) / max(1, tokens))
    rows = document_rows(tokenizer, corpus.texts("train", characters))
    return _Earlier(rows, corpus.texts("validation"))


def _rows_of(store: Store) -> Iterator[TokenRows]:
    for first in range(0, len(store), _ROWS):
        lengths = store.lengths[first : first + _ROWS]
        low, high = store.offsets[first], store.offsets[first + len(lengths)]
        sources = np.asarray(store.sources[first : first + _ROWS])
        yield TokenRows(np.asarray(store.tokens[low:high]), lengths, sources)


def _gathered(rows: Iterable[list[int]], source: int) -> Iterator[TokenRows]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _ROWS)):
        lengths = np.array([len(row) for row in chunk], np.int64)
        tokens = np.fromiter(chain.from_iterable(chunk), np.uint32, int(lengths.sum()))
        yield TokenRows(tokens, lengths, np.full(len(chunk), source, np.uint16))
