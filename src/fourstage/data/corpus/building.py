"""Builds the corpus of a run: reads, judges, and reports what was kept and dropped and why."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourstage import files
from fourstage.data.corpus.columns import Notes, Part
from fourstage.data.corpus.corpus import SPLITS, Corpus
from fourstage.data.corpus.judging import Verdicts, characters_left, is_refused, judge
from fourstage.data.corpus.parts import RawCorpus, write_parts
from fourstage.data.corpus.quality import trained_classifier
from fourstage.data.corpus.reporting import report_of, write_lists
from fourstage.data.corpus.settings import CorpusSettings
from fourstage.data.documents import LEAST_CHARACTERS, LEAST_DOCUMENTS
from fourstage.data.reading import raise_faults
from fourstage.errors import InputError


def build(
    folder: Path,
    key: str,
    raw: RawCorpus,
    settings: CorpusSettings,
    references: Sequence[tuple[str, str]],
    good: Sequence[str | Path],
    workers: int,
    where: str,
) -> tuple[Corpus, dict[str, Any]]:
    """The corpus of `raw` in `folder`, and a report; what a killed run finished is kept.

    Args:
        key: names all that decides the corpus; parts of another one are removed.
        good: paths of the good sample that a quality classifier learns from.
        where: the recipe's key and paths, for messages.

    Raises:
        InputError: nothing can be read, there is too little text, or (where the recipe refuses bad
            rows) some row is bad.
    """
    if not (folder / key).exists():
        shutil.rmtree(folder, ignore_errors=True)
        files.write_text(folder / key, "")
    classifier = classifier_of(folder, raw, settings, good)
    parts = write_parts(folder / "parts", raw, settings, references, classifier, workers)
    verdicts = judge(parts, settings, raw.refused, folder)
    notes = Notes()
    for part in parts:
        notes.add(part.notes)
    rows = [row for row in notes.bad if not is_refused(row["file"], raw.refused)]
    notes.bad = rows + verdicts.bad
    _check_keys(settings, notes)
    if not settings.skip_bad_rows:
        raise_faults([f"{row['file']}:{row['line']}: {row['why']}" for row in notes.bad])
    corpus = _write(folder, parts, verdicts, [source.name for source in settings.sources])
    _check(corpus, raw, notes, settings.validation, where)
    write_lists(folder, parts, verdicts, notes)
    return corpus, report_of(corpus, parts, verdicts, notes, raw)


def classifier_of(
    folder: Path, raw: RawCorpus, settings: CorpusSettings, good: Sequence[str | Path]
) -> Path | None:
    """The quality classifier in `folder` where a step needs one; trained unless it is there.

    Raises:
        InputError: there is no good sample to learn from, or too little of it.
    """
    if any("quality" in source.steps for source in settings.sources):
        return trained_classifier(folder, raw, settings, good)
    return None


def _write(
    folder: Path, parts: Sequence[Part], verdicts: Verdicts, sources: Sequence[str]
) -> Corpus:
    """Writes the verdicts beside the parts, and last of all what makes them a corpus."""
    np.save(folder / "verdicts.npy", verdicts.of)
    np.save(folder / "firsts.npy", verdicts.firsts)
    np.save(folder / "cut_documents.npy", verdicts.cut_documents)
    np.save(folder / "cuts.npy", verdicts.cuts)
    characters = characters_left(parts, verdicts)
    told = {
        "parts": len(parts),
        "sources": list(sources),
        "documents": {split: verdicts.count(code) for split, code in SPLITS.items()},
        "characters": {
            split: int(characters[verdicts.of == code].sum()) for split, code in SPLITS.items()
        },
    }
    files.write_json(folder / "corpus.json", told)
    return Corpus(folder)


def _check_keys(settings: CorpusSettings, notes: Notes) -> None:
    """Refuses a name of the text's key that no row has: it is misspelt.

    Raises:
        InputError: there is one.
    """
    for source in settings.sources:
        rows, mapped = (
            notes.per_source[f"{what}\t{source.name}"] for what in ("objects", "mapped")
        )
        if rows and not mapped:
            raise InputError(
                f"data.map.text={source.mapping['text']}: no row of {source.name} has this key; "
                "write one that the rows have, or leave it out"
            )


def _check(corpus: Corpus, raw: RawCorpus, notes: Notes, share: float, where: str) -> None:
    """Refuses a corpus with which nothing can be trained or measured.

    Raises:
        InputError: it is empty, or too small.
    """
    documents = sum(corpus.documents.values())
    characters = sum(corpus.characters.values())
    if characters >= LEAST_CHARACTERS and documents >= LEAST_DOCUMENTS:
        if not corpus.documents["train"]:
            raise InputError(
                f"{where}: {documents} documents with data.validation={share:g} leave nothing to "
                "train on: give more data or another share"
            )
        return
    why = [f"{name} {reason}" for name, reason in raw.refused.items()]
    why += [f"{row['file']}:{row['line']}: {row['why']}" for row in notes.bad]
    lost = {k: n for k, n in notes.counts.items() if k.startswith("dropped.")}
    reasons = ", ".join(f"{n} by {k.removeprefix('dropped.')}" for k, n in sorted(lost.items()))
    cleaned = f" ({reasons} were dropped: see data.clean)" if reasons else ""
    if not documents and why:
        raise_faults(why)
    if not documents:
        says = f"{where}: there is no text in it{cleaned}; give files with some text"
    else:
        says = (
            f"{where}: {documents} document(s) of {characters} characters{cleaned} are too little "
            f"to train and measure on: give at least {LEAST_DOCUMENTS} documents and "
            f"{LEAST_CHARACTERS} characters, or cut it smaller with data.document=paragraph or "
            "data.document=line"
        )
    raise_faults([*why[:4], says])
