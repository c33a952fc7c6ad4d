"""The corpus that a recipe names: its files, what they must not hold, and what decides it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fourstage import files
from fourstage.data.corpus.building import build
from fourstage.data.corpus.corpus import Corpus
from fourstage.data.corpus.parts import RawCorpus, RawSource
from fourstage.data.corpus.settings import CorpusSettings, reference_paths
from fourstage.data.crew import workers_for
from fourstage.data.documents import cut
from fourstage.data.reading import (
    BadRow,
    RawFile,
    as_paths,
    find_files,
    inspect_file,
    raw_hashes,
    read_rows_and_faults,
    read_text,
)
from fourstage.data.shapes import Malformed, recognise
from fourstage.recipe.data import Data

# Bytes of text that a byte of a file holds, roughly, where it is not one.
_PACKED = {".gz": 3.5, ".zst": 3.5, ".xz": 4.5, ".bz2": 4.0, ".zip": 3.5, ".parquet": 2.5}
_PACKED |= dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf", ".mp4", ".pyc"), 0.0)


def raw_sources(data: Data) -> tuple[list[RawSource], list[str]]:
    """The files of each source, and the names of those passed over.

    Raises:
        InputError: a path that does not exist.
    """
    sources, passed_over = [], []
    many = len(data.sources()) > 1
    for source in data.sources():
        found, skipped = find_files(source.paths, "data.pretrain")
        prefix = f"{source.name}/" if many else ""
        found = [RawFile(file.path, prefix + file.name) for file in found]
        sources.append(RawSource(str(source.name), found, source.document == "file"))
        passed_over += [prefix + name for name in skipped]
    return sources, passed_over


def text_files(data: Data) -> list[RawFile]:
    return [file for source in raw_sources(data)[0] for file in source.files]


def text_size(data: Data) -> int:
    """Bytes of the text, roughly where it is packed."""
    return unpacked_bytes(text_files(data))


def unpacked_bytes(found: Iterable[RawFile]) -> int:
    """Bytes of what files hold, roughly where they are packed."""
    factors = ((file, _PACKED.get(file.path.suffix.lower(), 1.0)) for file in found)
    return int(sum(file.path.stat().st_size * factor for file, factor in factors))


def corpus_inputs(data: Data) -> dict[str, Any]:
    """All that decides which documents there are.

    Raises:
        InputError: a path that does not exist, or a cleaning step that does not.
    """
    told: dict[str, Any] = {
        "raw": raw_hashes(text_files(data)),
        "settings": CorpusSettings.of(data).to_json(),
    }
    others = {
        "data.decontaminate.against": reference_paths(data),
        "data.quality.good": as_paths(data.quality.good or []),
    }
    for field, paths in others.items():
        if paths:
            told[field] = sorted(raw_hashes(find_files(paths, field)[0]).values())
    return told


def corpus_key(data: Data) -> str:
    """The name of the file that says of which inputs a corpus is made."""
    return f"{files.sha256_json(corpus_inputs(data))[:16]}.key"


def references_of(data: Data) -> list[tuple[str, str]]:
    """(where, text) of all that the corpus must not hold.

    Raises:
        InputError: a file that cannot be read.
    """
    against = reference_paths(data)
    if not against:
        return []
    found, _ = find_files(against, "data.decontaminate.against")
    return [reference for file in found for reference in _references(file)]


def _references(file: RawFile) -> Iterator[tuple[str, str]]:
    if not inspect_file(file).holds_rows:
        yield from ((file.name, text) for text in cut(read_text(file), "line") if text.strip())
        return
    for row in read_rows_and_faults(file):
        if isinstance(row, BadRow):
            continue
        try:
            known = recognise(row.value, row.where, None)
            texts = [known.as_text(), known.rejected, *known.responses]
            yield f"{file.name}:{row.line}", "\n".join(texts)
        except Malformed:
            # Whatever the row is, no document may hold what it says.
            yield f"{file.name}:{row.line}", "\n".join(_strings(row.value))


def _strings(value: Any) -> Iterator[str]:
    """Every text within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def build_corpus(data: Data, folder: Path) -> tuple[Corpus, dict[str, Any]]:
    """Builds the corpus of `data` in `folder`, or goes on with it; and a report.

    Raises:
        InputError: nothing can be read, or too little.
    """
    sources, passed_over = raw_sources(data)
    settings = CorpusSettings.of(data)
    key = corpus_key(data)
    where = f"data.pretrain={','.join(data.paths('pretrain'))}"
    workers = workers_for(text_size(data), data.workers)
    raw = RawCorpus(sources)
    good = as_paths(data.quality.good or [])
    references = references_of(data)
    corpus, report = build(folder, key, raw, settings, references, good, workers, where)
    report["files_passed_over"] = len(passed_over)
    return corpus, report
