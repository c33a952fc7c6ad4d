"""The quality classifier of a corpus: learnt from a good sample against the pile itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from fourstage.data.cleaning import train_classifier
from fourstage.data.corpus.parts import RawCorpus
from fourstage.data.corpus.settings import CorpusSettings
from fourstage.data.documents import cut, place
from fourstage.data.reading import (
    BadRow,
    Block,
    Damaged,
    RawFile,
    Unreadable,
    find_files,
    read_blocks,
)
from fourstage.data.shapes import Malformed, recognise
from fourstage.errors import InputError

# Documents of each side, and of one file of the pile at least.
_DOCUMENTS = 20_000
_LEAST_OF_A_FILE = 20
# Of the pile, by hash: what was learnt as an example of it scores low ever after.
_LEARNT = 0.1


def trained_classifier(
    folder: Path, raw: RawCorpus, settings: CorpusSettings, good: Sequence[str | Path]
) -> Path:
    """The file of the classifier in `folder`; trained unless it is there.

    The pile is known by the beginnings of all its files.

    Raises:
        InputError: there is no good sample, or too little of either.
    """
    path = folder / "classifier.safetensors"
    if path.exists():
        return path
    if not good:
        raise InputError(
            "data.clean: the step 'quality' learns from a good sample: write data.quality.good=FILE"
        )
    files = [(file, s) for s, source in enumerate(raw.sources) for file in source.files]
    share = max(_LEAST_OF_A_FILE, _DOCUMENTS // max(1, len(files)))
    pile = (
        text
        for file, source in files
        for text in islice(_learnt(_texts(file, settings, source)), share)
    )
    sample = (text for file in find_files(good, "data.quality.good")[0] for text in _texts(file))
    train_classifier(islice(sample, _DOCUMENTS), islice(pile, _DOCUMENTS)).save(path)
    return path


def _learnt(texts: Iterator[str]) -> Iterator[str]:
    return (text for text in texts if place(text, "quality") < _LEARNT)


def _texts(file: RawFile, settings: CorpusSettings | None = None, source: int = 0) -> Iterator[str]:
    """Documents of a file as they stand there, as far as it can be read."""
    own = settings.sources[source] if settings else None
    try:
        for block in read_blocks(file):
            yield from _documents(
                block, own.document if own else "auto", own.mapping if own else None
            )
    except (Damaged, Unreadable):
        # What is wrong with it is told where it is read as a whole.
        return


def _documents(block: Block, document: str, mapping: Mapping[str, str] | None) -> Iterator[str]:
    if block.text is not None:
        yield from (text for text in cut(block.text, document) if text.strip())
        return
    for row in block.rows():
        if isinstance(row, BadRow):
            continue
        try:
            yield recognise(row.value, row.where, mapping).as_text()
        except Malformed:
            continue
