"""What the tasks do: each stage is a function of the job, the rank of a task and their number.

1. list: each task reads some of the files and writes down how large their blocks are. From these
   follow the borders of all parts of the corpus, which are those of one machine.
2. parts: each task writes neighbouring parts, and reads no more than what they hold.
3. judge: one task finds what is kept, over all parts, and trains the tokenizer.
4. encode: each task encodes neighbouring parts.
5. assemble: one task writes the stores, and what else the recipe asks for.

A stage leaves in the run what one machine would have written on its way. So the last one is the
usual preparation, which finds almost all of it done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fourstage import files
from fourstage.data.cluster.job import Job
from fourstage.data.corpus import Corpus
from fourstage.data.corpus.building import classifier_of
from fourstage.data.corpus.parts import (
    Place,
    RawCorpus,
    borders,
    finish_parts,
    part_path,
    size_of,
    write_share,
)
from fourstage.data.corpus.recipes import corpus_key, references_of
from fourstage.data.corpus.settings import CorpusSettings
from fourstage.data.corpus.working import Worker
from fourstage.data.prepare import Preparation
from fourstage.data.prepared import PreparedData
from fourstage.data.reading import as_paths
from fourstage.data.shards import encode_parts
from fourstage.errors import InputError

# Says that the work became the corpus of the run.
_ADOPTED = "adopted"


def share_of(count: int, rank: int, tasks: int) -> range:
    """Which of `count` things in a row are those of one task: neighbours, shared evenly."""
    return range(rank * count // tasks, (rank + 1) * count // tasks)


def list_files(job: Job, rank: int, tasks: int) -> int:
    """Writes down the sizes of the blocks of every file of its share; returns how many files."""
    if _is_adopted(job):
        return 0
    raw, data = job.raw(), job.recipe.data
    if rank == 0:
        good = as_paths(data.quality.good or [])
        classifier_of(job.work / "corpus", raw, CorpusSettings.of(data), good)
    listed = 0
    for number, (source, file) in enumerate(raw.files()):
        path = _listing(job, number)
        if number % tasks != rank or path.exists():
            continue
        sizes = [size_of(block) for block in raw.blocks(file, raw.sources[source].whole)]
        told = {"name": file.name, "sizes": sizes, "refused": raw.refused.get(file.name)}
        files.write_json(path, told)
        listed += 1
    return listed


def write_parts(job: Job, rank: int, tasks: int) -> int:
    """Writes the parts of its share that are missing; returns how many."""
    if _is_adopted(job):
        return 0
    raw, data = job.raw(), job.recipe.data
    begins = _begins(job, raw)
    settings, folder = CorpusSettings.of(data), job.work / "corpus"
    classifier = classifier_of(folder, raw, settings, as_paths(data.quality.good or []))
    worker = Worker(settings, references_of(data), classifier)
    return write_share(folder / "parts", raw, begins, share_of(len(begins), rank, tasks), worker)


def judge(job: Job, rank: int, tasks: int) -> int:
    """Makes the parts the corpus of the run, trains the tokenizer, and makes room for its rows."""
    _adopt(job)
    recipe, run = job.recipe, Path(job.run)
    job.prepare(recipe, run, only="tokenizer", redo=job.redo)
    preparation = Preparation(recipe, run, print)
    documents = sum(preparation.corpus().documents.values())
    preparation.begin_pretrain()
    return documents


def encode(job: Job, rank: int, tasks: int) -> int:
    """Encodes the parts of its share; returns how many there are."""
    run = Path(job.run)
    folder = run / "data" / "pretrain"
    if (folder / "train").is_dir():
        return 0
    corpus = Corpus(job.corpus)
    numbers = share_of(corpus.parts, rank, tasks)
    encode_parts(folder, corpus, run / "tokenizer", numbers, workers=1)
    return len(numbers)


def assemble(job: Job, rank: int, tasks: int) -> int:
    """Prepares as on one machine, where the rows of all documents are found encoded."""
    job.prepare(job.recipe, Path(job.run), only=job.only, redo=job.redo)
    return 1


@dataclass(frozen=True)
class Stage:
    """One stage: `work(job, rank, tasks)` returns how many of `unit` it did."""

    name: str
    work: Callable[[Job, int, int], int]
    unit: str
    is_shared: bool


STAGES = (
    Stage("list", list_files, "files", True),
    Stage("parts", write_parts, "parts", True),
    Stage("judge", judge, "documents", False),
    Stage("encode", encode, "parts", True),
    Stage("assemble", assemble, "runs", False),
)


def _listing(job: Job, number: int) -> Path:
    return job.work / "files" / f"{number:06d}.json"


def _begins(job: Job, raw: RawCorpus) -> list[Place]:
    """Where each part begins; notes in `raw` which files are refused.

    Raises:
        InputError: there are other files than those that were listed.
    """
    sizes = []
    for number, (_, file) in enumerate(raw.files()):
        path = _listing(job, number)
        told = files.read_json(path) if path.exists() else {}
        if told.get("name") != file.name:
            raise InputError(
                f"{file.path}: files came or went while they were prepared; run the same command "
                "again"
            )
        sizes.append(told["sizes"])
        if told["refused"]:
            raw.refused[file.name] = told["refused"]
    return borders(sizes)


def _is_adopted(job: Job) -> bool:
    return (job.work / _ADOPTED).exists() and job.corpus.is_dir()


def _adopt(job: Job) -> None:
    """Moves the work to where the corpus of the run lies, unless that is there already.

    Raises:
        InputError: a part is missing.
    """
    key = corpus_key(job.recipe.data)
    if not (job.corpus / key).exists():
        raw, made = job.raw(), job.work / "corpus"
        count = len(_begins(job, raw))
        for number in range(count):
            if not part_path(made / "parts", number).exists():
                raise InputError(
                    f"part {number} of {count} is not in {made}: remove {job.work}, and run the "
                    "same command again"
                )
        finish_parts(made / "parts", count, raw.refused)
        files.write_text(made / key, "")
        PreparedData(Path(job.run)).unmark("corpus")
        shutil.rmtree(job.corpus, ignore_errors=True)
        job.corpus.parent.mkdir(parents=True, exist_ok=True)
        os.rename(made, job.corpus)
    files.write_text(job.work / _ADOPTED, "")
