"""What a worker does: blocks of raw files to documents, cleaned, checked, hashed and signed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fourstage.data.cleaning import Cleaner, looks_like_code
from fourstage.data.corpus.columns import Documents, Notes
from fourstage.data.corpus.likeness import hasher
from fourstage.data.corpus.settings import CorpusSettings, SourceSettings
from fourstage.data.decontamination import Contamination
from fourstage.data.deduplication import Spans, Words, spans
from fourstage.data.documents import cut
from fourstage.data.reading import BadRow, Block, RawRow
from fourstage.data.shapes import Malformed, recognise

# The passages of documents in which only lines are looked for; none of them is used.
_PASSAGE_WORDS = 50


@dataclass(frozen=True)
class Task:
    """Blocks that follow each other, and the source that each is of."""

    blocks: Sequence[Block]
    sources: Sequence[int]


@dataclass
class _Found:
    text: str
    line: int
    source: int
    name: tuple[str, str, str]


class Worker:
    """Makes documents of tasks; the same for the same task wherever it works.

    Args:
        settings: of the corpus.
        references: (where, text) of what no document may hold.
        classifier: file of the quality classifier, where a step needs one.
    """

    def __init__(
        self,
        settings: CorpusSettings,
        references: Sequence[tuple[str, str]],
        classifier: Path | None = None,
    ):
        self.settings = settings
        self.cleaners = [
            Cleaner(source.steps, settings.languages, classifier, settings.threshold)
            for source in settings.sources
        ]
        self.contamination = None
        if references:
            self.contamination = Contamination(references, settings.ngram)
        self.hasher = hasher(settings.near)

    def __call__(self, task: Task) -> tuple[Documents, Notes]:
        notes = Notes()
        found = [
            kept
            for block, source in zip(task.blocks, task.sources, strict=True)
            for text, line, shape in self._texts(block, source, notes)
            if (kept := self._kept(text, line, shape, block.name, source, notes)) is not None
        ]
        words = Words.of([each.text for each in found])
        if self.contamination is not None:
            found, words = self._clean_of_references(found, words, notes)
        return self._columns(found, words), notes

    def _texts(self, block: Block, source: int, notes: Notes) -> Iterator[tuple[str, int, str]]:
        """Documents as they stand in the block, the line of each, and its shape."""
        settings = self.settings.sources[source]
        if block.text is not None:
            at, behind, line = 0, 0, block.first
            for text in cut(block.text, settings.document):
                stripped = text.strip()
                found = block.text.find(stripped.partition("\n")[0], behind)
                if found >= 0:
                    at, line = found, line + block.text.count("\n", at, found)
                    # Paragraphs may lie further apart than they are joined, but no closer.
                    behind = found + len(stripped)
                yield text, line, "text"
            return
        for row in block.rows():
            notes.counts["rows"] += 1
            self._note_mapped(row, settings, notes)
            why = row.why if isinstance(row, BadRow) else ""
            if not isinstance(row, BadRow):
                try:
                    known = recognise(row.value, row.where, settings.mapping)
                    notes.shapes[f"{known.shape}\t{block.name}"] += 1
                    yield known.as_text(), row.line, known.shape
                except Malformed as fault:
                    why = str(fault)
            if why:
                notes.bad.append({"file": block.name, "line": row.line, "why": why})

    def _note_mapped(self, row: RawRow | BadRow, settings: SourceSettings, notes: Notes) -> None:
        """Counts rows that have the key under which the recipe says that the text stands."""
        key = settings.mapping.get("text")
        if key is None or not isinstance(row, RawRow) or not isinstance(row.value, dict):
            return
        notes.per_source[f"objects\t{settings.name}"] += 1
        notes.per_source[f"mapped\t{settings.name}"] += key.partition(".")[0] in row.value

    def _kept(
        self, text: str, line: int, shape: str, file: str, source: int, notes: Notes
    ) -> _Found | None:
        """The document as it will be trained on; None, and a note, where it is dropped."""
        name = self.settings.sources[source].name
        notes.counts["read"] += 1
        notes.per_source[f"read\t{name}"] += 1
        notes.per_source[f"characters\t{name}"] += len(text)
        stripped = text.strip()
        if not stripped:
            notes.counts["empty"] += 1
            return None
        cleaned = self.cleaners[source](stripped)
        notes.edits.update(cleaned.edits)
        notes.counts.update(cleaned.notes)
        if cleaned.reason == "empty":
            notes.counts["empty"] += 1
            return None
        if cleaned.text is None:
            notes.drop(cleaned.reason or "cleaning", file, line, stripped, cleaned.detail)
            return None
        return _Found(cleaned.text.strip(), line, source, (file, shape, cleaned.language))

    def _clean_of_references(
        self, found: list[_Found], words: Words, notes: Notes
    ) -> tuple[list[_Found], Words]:
        """The documents that hold nothing they must not; the others are noted."""
        assert self.contamination is not None
        hits = self.contamination.find_each([each.text for each in found], words)
        for each, hit in zip(found, hits, strict=True):
            if hit is None:
                continue
            file = each.name[0]
            notes.drop("contaminated", file, each.line, each.text, f"holds {hit.where}")
            notes.hits.append(
                {"file": file, "line": each.line, "reference": hit.where, "words": hit.words}
            )
        kept = [each for each, hit in zip(found, hits, strict=True) if hit is None]
        if len(kept) == len(found):
            return found, words
        return kept, Words.of([each.text for each in kept])

    def _columns(self, found: list[_Found], words: Words) -> Documents:
        encoded = [each.text.encode("utf-8", "surrogatepass") for each in found]
        names: dict[tuple[str, str, str], int] = {}
        labels = [names.setdefault(each.name, len(names)) for each in found]
        digests = b"".join(hashlib.blake2b(t, digest_size=16).digest() for t in encoded)
        texts = [each.text for each in found]
        passages = self._passages(texts, words)
        return Documents(
            text=np.frombuffer(b"".join(encoded), np.uint8),
            offsets=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
            hashes=np.frombuffer(digests, np.uint64).reshape(-1, 2),
            signatures=self.hasher.signatures(texts, words),
            characters=np.array([len(each.text) for each in found], np.int64),
            lines=np.array([each.line for each in found], np.int64),
            sources=np.array([each.source for each in found], np.uint16),
            labels=np.array(labels, np.int32),
            span_documents=passages.documents,
            span_bounds=passages.bounds,
            span_hashes=passages.hashes,
            span_lines=passages.is_line,
            names=list(names),
        )

    def _passages(self, texts: list[str], words: Words) -> Spans:
        """Passages and lines, where they are looked for."""
        if not texts or not (self.settings.passages or self.settings.lines):
            none = np.zeros(0, np.int64)
            return Spans(none, none.reshape(0, 2), none.astype(np.uint64), none.astype(bool))
        found = spans(texts, self.settings.passages or _PASSAGE_WORDS, words)
        # Files of code begin alike by right, and a cut would break them.
        prose = ~np.array([looks_like_code(text) for text in texts], bool)[found.documents]
        columns = (found.documents, found.bounds, found.hashes, found.is_line)
        return Spans(*(column[prose] for column in columns))
