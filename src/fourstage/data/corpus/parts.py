"""Pass 1: raw files to parts of the corpus, side by side, going on where a killed run stopped."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fourstage import files
from fourstage.data.corpus.columns import Documents, Notes, Part, joined, write_part
from fourstage.data.corpus.settings import CorpusSettings
from fourstage.data.corpus.working import Task, Worker
from fourstage.data.crew import Crew
from fourstage.data.reading import Block, Damaged, RawFile, Unreadable, read_blocks

# Bytes of raw text a task, so that handing it over costs nothing; tasks a part.
_TASK_BYTES = 1_000_000
_PART_TASKS = 8
# What a row of a JSON list is taken to hold.
_VALUE_BYTES = 1000
# Written last: how many parts there are, and the files of which nothing is used.
_TOLD = "parts.json"

Answer = tuple[Documents, Notes]


@dataclass
class RawSource:
    """The files of one source."""

    name: str
    files: list[RawFile]
    whole: bool


@dataclass(frozen=True)
class Place:
    """A block of the raw files: number of the file, over all sources, and of the block in it."""

    file: int
    block: int


@dataclass
class RawCorpus:
    """The raw files of all sources as tasks, in reading order.

    Attributes:
        refused: file -> why nothing of it is used; known once the tasks were read.
    """

    sources: Sequence[RawSource]
    refused: dict[str, str] = field(default_factory=dict)

    def tasks(self, begin: Place = Place(0, 0)) -> Iterator[Task]:
        """Blocks gathered to about a megabyte; where they end depends on the files alone.

        Args:
            begin: where a task begins; those from there on are the same as in the whole.
        """
        blocks: list[Block] = []
        sources: list[int] = []
        size = 0
        for number, (source, file) in enumerate(self.files()):
            if number < begin.file:
                continue
            skipped = begin.block if number == begin.file else 0
            for block in islice(self.blocks(file, self.sources[source].whole), skipped, None):
                blocks.append(block)
                sources.append(source)
                size += size_of(block)
                if size >= _TASK_BYTES:
                    yield Task(blocks, sources)
                    blocks, sources, size = [], [], 0
        if blocks:
            yield Task(blocks, sources)

    def files(self) -> Iterator[tuple[int, RawFile]]:
        """All files in reading order, each with the number of its source."""
        for number, source in enumerate(self.sources):
            yield from ((number, file) for file in source.files)

    def blocks(self, file: RawFile, whole: bool) -> Iterator[Block]:
        """Blocks of a file; what is damaged or no text is noted, and dropped as a whole later."""
        try:
            blocks = read_blocks(file)
            yield from (_joined(blocks) if whole else blocks)
        except (Damaged, Unreadable) as fault:
            self.refused[file.name] = fault.why


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Blocks of text put together to whole files."""
    held: list[Block] = []
    for block in blocks:
        if block.text is None:
            yield block
            continue
        held.append(block)
        if block.last:
            yield dataclasses.replace(held[0], text="".join(str(b.text) for b in held), last=True)
            held = []


def size_of(block: Block) -> int:
    """About how many bytes it holds; a function of the block alone."""
    held = block.text or block.lines or block.table
    return len(held) if held else _VALUE_BYTES * len(block.values or ())


def borders(sizes: Iterable[Sequence[int]]) -> list[Place]:
    """Where each part begins, without the blocks themselves: the borders of `RawCorpus.tasks`.

    Args:
        sizes: of each file in reading order, `size_of` its blocks.
    """
    places: list[Place] = []
    size = tasks = 0
    ended = True
    for file, blocks in enumerate(sizes):
        for block, more in enumerate(blocks):
            if ended:
                places.append(Place(file, block))
            size, ended = size + more, False
            if size >= _TASK_BYTES:
                size, tasks = 0, (tasks + 1) % _PART_TASKS
                ended = tasks == 0
    return places


def write_parts(
    folder: Path,
    raw: RawCorpus,
    settings: CorpusSettings,
    references: Sequence[tuple[str, str]],
    classifier: Path | None,
    workers: int,
) -> list[Part]:
    """Writes the parts that `folder` lacks; the parts, in order.

    A part holds the documents of the same tasks in every run, so those of a killed run are kept.
    """
    if not (folder / _TOLD).exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = 0
        while part_path(folder, done).exists():
            done += 1
        tasks = islice(raw.tasks(), done * _PART_TASKS, None)
        crew = Crew(functools.partial(Worker, settings, references, classifier), workers)
        finish_parts(folder, _write_each(folder, done, crew.answers(tasks)), raw.refused)
    told = files.read_json(folder / _TOLD)
    raw.refused.update(told["refused"])
    return [Part(part_path(folder, number)) for number in range(told["parts"])]


def write_share(
    folder: Path, raw: RawCorpus, begins: Sequence[Place], numbers: range, worker: Worker
) -> int:
    """Writes those of the parts `numbers` that `folder` lacks, and reads only what they hold.

    Args:
        begins: the borders of all parts.

    Returns:
        How many were written.
    """
    missing = [number for number in numbers if not part_path(folder, number).exists()]
    if not missing:
        return 0
    first = missing[0]
    tasks = islice(raw.tasks(begins[first]), (numbers.stop - first) * _PART_TASKS)
    return _write_each(folder, first, map(worker, tasks)) - first


def finish_parts(folder: Path, count: int, refused: dict[str, str]) -> None:
    """Says that all parts are there, and of which files nothing is used."""
    files.write_json(folder / _TOLD, {"parts": count, "refused": refused})


def _write_each(folder: Path, number: int, answers: Iterator[Answer]) -> int:
    """Writes parts from `number` on; the number after the last."""
    while held := list(islice(answers, _PART_TASKS)):
        _write(part_path(folder, number), held)
        number += 1
    return number


def _write(path: Path, answers: Sequence[Answer]) -> None:
    notes = Notes()
    for _, each in answers:
        notes.add(each)
    write_part(path, joined([documents for documents, _ in answers]), notes)


def part_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"
