"""One preparation as every task of it is told: the recipe, the run, and where work is put aside."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage import __version__
from fourstage.data.corpus.parts import RawCorpus
from fourstage.data.corpus.recipes import raw_sources
from fourstage.data.corpus.settings import CorpusSettings, reference_paths
from fourstage.data.reading import as_paths, find_files
from fourstage.errors import InputError
from fourstage.files import sha256_json
from fourstage.recipe import Recipe, recipe_from

# `fourstage.pipeline.prepare`: it lies above the data and is handed down.
Prepare = Callable[..., None]


@dataclass(frozen=True)
class Job:
    """What is prepared, by whatever task.

    Attributes:
        values: the recipe as plain values.
        run: the folder of the run, on a disk that all tasks share.
        directory: where the command was given; relative paths of the recipe begin there.
        name: of the raw files and of what is done with them; other files are another work.
        prepare: what does on one machine all that is still to be done.
        only, redo: as `prepare` takes them.
    """

    values: dict[str, Any]
    run: str
    directory: str
    name: str
    prepare: Prepare
    only: str | None = None
    redo: bool = False

    @classmethod
    def of(cls, recipe: Recipe, run: Path, prepare: Prepare, only: str | None, redo: bool) -> Job:
        """The job of a recipe.

        Raises:
            InputError: its text does not come from files, a path does not exist, or a step of
                cleaning does not.
        """
        if recipe.data.origin("pretrain") != "files":
            raise InputError(
                "--executor prepares text from files, and data.pretrain names none: write "
                "data.pretrain=FOLDER, or leave --executor out"
            )
        if only not in (None, "pretrain"):
            raise InputError(
                f"--only {only}: an executor prepares the text of pretraining and what follows "
                "from it: write --only pretrain, or leave --only or --executor out"
            )
        name = _name(recipe)
        return cls(recipe.to_dict(), str(run.resolve()), os.getcwd(), name, prepare, only, redo)

    @property
    def recipe(self) -> Recipe:
        return recipe_from(self.values)

    @property
    def corpus(self) -> Path:
        """Where the corpus of the run lies."""
        return Path(self.run) / "data" / "corpus"

    @property
    def work(self) -> Path:
        """What becomes the corpus, as long as it is none."""
        return Path(self.run) / "cluster" / self.name

    def logs(self, tasks: int) -> Path:
        """Where datatrove says what is finished; a stage of other tasks is another stage."""
        told = sha256_json([self.values, self.only, self.redo, tasks])
        return self.work / f"logs-{told[:8]}"

    def raw(self) -> RawCorpus:
        return RawCorpus(raw_sources(self.recipe.data)[0])


def _name(recipe: Recipe) -> str:
    """Names the raw files, by size and time since terabytes are not hashed to begin with."""
    data = recipe.data
    found = [file for source in raw_sources(data)[0] for file in source.files]
    for field, paths in (
        ("data.decontaminate.against", reference_paths(data)),
        ("data.quality.good", as_paths(data.quality.good or [])),
    ):
        found += find_files(paths, field)[0] if paths else []
    states = [(file.name, file.path.stat()) for file in found]
    told = [[name, state.st_size, state.st_mtime_ns] for name, state in states]
    return sha256_json([__version__, CorpusSettings.of(data).to_json(), told])[:12]
