"""Which prompts are completed for labelling: a run's own, or a person's file of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fourstage.errors import InputError
from fourstage.randomness import permutation
from fourstage.tasks import Task

RUN_SOURCES = ("rl", "held-out")


def prompts_of(run: Path, source: str, seed: int) -> list[Task]:
    """The prompts in a random order that the seed fixes.

    Args:
        source: "rl" (the prompts that reinforcement learning trains on), "held-out", or a file.

    Raises:
        InputError: there are none, or the file cannot be read.
    """
    tasks = _tasks(run, source)
    if not tasks:
        where = f"{run / 'data'} holds no {source} prompts" if source in RUN_SOURCES else source
        raise InputError(
            f"{where}: nothing to label; write --source FILE with a prompt a line, or rows with "
            "prompts"
        )
    order = permutation(len(tasks), seed, "labelled prompts")
    return [tasks[index] for index in order]


def _tasks(run: Path, source: str) -> list[Task]:
    if source not in RUN_SOURCES:
        return list(_of_file(Path(source)))
    from fourstage.data.prepared import PreparedData

    prepared = PreparedData.open(run)
    if source == "rl":
        return prepared.tasks("rl", "train")
    return prepared.tasks("rl", "validation") or prepared.tasks("sft", "validation")


def _of_file(path: Path) -> Iterable[Task]:
    """Prompts of a file, as `data.prompts` takes them; with an answer there is a gold.

    Raises:
        InputError: it is missing or unreadable, or a row is no prompt.
    """
    from fourstage.data.fromfiles import demonstration
    from fourstage.data.making import reference_task
    from fourstage.data.reading import find_files, inspect_file, read_rows, read_text
    from fourstage.data.shapes import Malformed, recognise

    for file in find_files(path, "--source")[0]:
        if not inspect_file(file).holds_rows:
            lines = (line.strip() for line in read_text(file).split("\n"))
            yield from (Task(line, "own", {}) for line in lines if line)
            continue
        for raw in read_rows(file):
            try:
                row = recognise(raw.value, raw.where)
            except Malformed as fault:
                raise InputError(f"{raw.where}: {fault}") from fault
            messages = row.messages or []
            if row.kind == "dialogue":
                yield demonstration(row).task
            elif row.kind == "prompt" and row.answer is not None:
                yield reference_task(_asked(messages), row.answer)
            elif row.kind == "prompt":
                yield Task(_asked(messages), "own", {})
            else:
                raise InputError(f"{raw.where}: this row is no prompt: write rows with 'prompt'")


def _asked(messages: list[dict[str, str]]) -> str | list[dict[str, str]]:
    """A lone user's message as its text, else the conversation."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return messages
