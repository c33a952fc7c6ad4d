"""What preparation leaves in a run, and how it is opened.

data/<stage>/train, validation     stores
data/corpus/                       documents of a person's own files, and lists of what was dropped
data/pretrain/validation.jsonl     {text, kind?, bits?, determined?}
data/pretrain/replay.jsonl         {text}: of the earlier text
data/sft/demonstrations.jsonl      {task, response}: some of the training ones
data/sft/validation.jsonl          tasks, and where they were demonstrated their {response}
data/reward/validation.jsonl       {task, chosen, rejected, gold_chosen?, gold_rejected?}
data/reward/labelled/train, validation     stores of single judgements, where those were given
data/rl/train.jsonl, validation.jsonl      tasks
data/vocabulary.txt                words of a person's own text, for the checkers
data/report.json                   what each step kept and dropped, and why
data/manifest.json                 hashes of the raw files, the tokenizer and every store
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage import files
from fourstage.data.store import Store
from fourstage.data.words import remember
from fourstage.tasks import Task
from fourstage.tokenizer import Tokenizer

STEPS = ("corpus", "tokenizer", "pretrain", "sft", "reward", "rl")
_VOCABULARY = "vocabulary.txt"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@dataclass(frozen=True)
class PreparedData:
    """The data of a run, as far as they are prepared."""

    run: Path

    @classmethod
    def open(cls, run: Path) -> PreparedData:
        """Opens a run's data, and makes its vocabulary known to the checkers of this process."""
        prepared = cls(Path(run))
        path = prepared.folder / _VOCABULARY
        if path.exists():
            remember(path.read_text(encoding="utf-8").split("\n"))
        return prepared

    @property
    def folder(self) -> Path:
        return self.run / "data"

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.run / "tokenizer")

    def store(self, stage: str, split: str) -> Store:
        """The store of `pretrain`, `sft` or `reward`; `split` is `train` or `validation`."""
        return Store.open(self.folder / stage / split)

    def training_store(self, stage: str) -> Store:
        """What a stage trains on; of `reward` the single judgements where there are no pairs."""
        labelled = self.folder / stage / "labelled" / "train"
        return Store.open(labelled) if labelled.is_dir() else self.store(stage, "train")

    def documents(self) -> list[dict[str, Any]]:
        """Held-out documents: rows with `text`, in the world also `kind`, `bits`, `determined`."""
        return read_lines(self.folder / "pretrain" / "validation.jsonl")

    def replayed_documents(self) -> list[dict[str, Any]]:
        """Held-out documents of the earlier text, rows with `text`; none without a replay."""
        return read_lines(self.folder / "pretrain" / "replay.jsonl")

    def demonstrations(self) -> list[tuple[Task, str]]:
        """Some training demonstrations: tasks and their responses."""
        rows = read_lines(self.folder / "sft" / "demonstrations.jsonl")
        return [(Task.from_json(row["task"]), row["response"]) for row in rows]

    def tasks(self, stage: str, split: str) -> list[Task]:
        """Tasks of `sft` (validation) or `rl` (train, validation)."""
        return [Task.from_json(row) for row in read_lines(self.folder / stage / f"{split}.jsonl")]

    def pairs(self) -> list[dict[str, Any]]:
        """Held-out comparisons."""
        return read_lines(self.folder / "reward" / "validation.jsonl")

    @property
    def report(self) -> dict[str, Any]:
        path = self.folder / "report.json"
        return files.read_json(path) if path.exists() else {}

    @property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        return files.read_json(path) if path.exists() else {}

    def was_made(self, stage: str) -> bool:
        """Whether a stage's data were made from the text."""
        return self.report.get(stage, {}).get("origin") == "made"

    def write_vocabulary(self, words: Iterable[str]) -> None:
        known = sorted(set(words))
        remember(known)
        files.write_text(self.folder / _VOCABULARY, "\n".join(known))

    # A step's mark is written last: it says for which inputs its folder is finished.

    def _mark(self, step: str) -> Path:
        return self.folder / f".{step}.json"

    def is_done(self, step: str, key: str) -> bool:
        """Whether `step` was finished from the inputs that `key` names."""
        mark = self._mark(step)
        where = self.run / "tokenizer" if step == "tokenizer" else self.folder / step
        return mark.exists() and where.is_dir() and files.read_json(mark)["key"] == key

    def unmark(self, step: str) -> None:
        """Says that `step` is unfinished, before what it had is replaced: another recipe's, too."""
        self._mark(step).unlink(missing_ok=True)

    def begin(self, step: str) -> None:
        """Clears what an earlier or unfinished `step` left."""
        self.unmark(step)
        shutil.rmtree(self.folder / step, ignore_errors=True)

    def finish(self, step: str, key: str, report: dict[str, Any], raw: dict[str, Any]) -> None:
        """Rewrites the report and the manifest of the whole, then marks `step` as finished."""
        stores = {}
        for split in ("train", "validation"):
            if (self.folder / step / split / "index.json").exists():
                stores[f"{step}/{split}"] = self.store(step, split).hash
        mark = {"key": key, "report": report, "raw": raw, "stores": stores}
        self._summarise(step, mark)
        files.write_json(self._mark(step), mark)

    def _summarise(self, step: str, mark: dict[str, Any]) -> None:
        known = {s: files.read_json(self._mark(s)) for s in STEPS if self._mark(s).exists()}
        known[step] = mark
        marks = {s: known[s] for s in STEPS if s in known}
        manifest: dict[str, Any] = {"raw": {}, "stores": {}}
        for each in marks.values():
            manifest["raw"] |= each["raw"]
            manifest["stores"] |= each["stores"]
        if (self.run / "tokenizer").is_dir():
            manifest["tokenizer"] = files.sha256_folder(self.run / "tokenizer")
        files.write_json(self.folder / "manifest.json", manifest)
        report = {step: mark["report"] for step, mark in marks.items()}
        files.write_json(self.folder / "report.json", report)
