"""Rows written so that each fits the context: conversations, single judgements and prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourstage.data.encoding import Demonstration, Judgement, dialogue_example
from fourstage.data.store import Store, write_store
from fourstage.errors import InputError
from fourstage.files import write_lines
from fourstage.tasks import Task
from fourstage.tokenizer import Tokenizer


@dataclass(frozen=True)
class Fitting:
    """Writes what fits a context of so many cells; `counts` note what was "cut" or "too_long".

    Each raises an InputError where nothing fits.
    """

    tokenizer: Tokenizer
    context: int

    def dialogues(
        self, folder: Path, demonstrations: Iterable[Demonstration], counts: Counter[str]
    ) -> Store:
        fitted = (dialogue_example(self.tokenizer, d, self.context, counts) for d in demonstrations)
        examples = [example for example in fitted if example is not None]
        self._require(examples, "sft")
        return write_store(folder, examples, vocab_size=self.tokenizer.vocab_size, masked=True)

    def judgements(
        self, folder: Path, judgements: Iterable[Judgement], counts: Counter[str]
    ) -> Store:
        """Single responses, each with its `label`: 1 good, -1 bad."""
        tokenizer = self.tokenizer
        written = [
            (example, {"label": 1 if each.is_good else -1})
            for each in judgements
            if (example := dialogue_example(tokenizer, each.demonstration, self.context, counts))
        ]
        self._require(written, "preferences")
        examples, labels = zip(*written, strict=True)
        return write_store(folder, examples, labels, vocab_size=tokenizer.vocab_size, masked=True)

    def tasks(self, path: Path, tasks: Sequence[Task], room: int, counts: Counter[str]) -> int:
        """Tasks whose prompts have at most `room` tokens; how many there are."""
        chat_prompt = self.tokenizer.chat_prompt
        fitting = [task for task in tasks if len(chat_prompt(task.prompt)) <= room]
        counts["too_long"] += len(tasks) - len(fitting)
        self._require(fitting, "prompts")
        return write_lines(path, (task.to_json() for task in fitting))

    def _require(self, items: list, part: str) -> None:
        if not items:
            raise InputError(
                f"data.{part}: nothing in it fits model.context={self.context}: write a larger "
                "model.context, or give shorter rows"
            )
