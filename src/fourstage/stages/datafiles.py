"""What preparation left in data/, as the stages read it."""

from __future__ import annotations

from typing import Any

from fourstage.data.prepared import PreparedData
from fourstage.evaluation.responses import with_response
from fourstage.stages.context import StageContext
from fourstage.tasks import Task

# Fixed prompts that are shown to every stage's model as it learns.
_SHOWN = 6


def held_out_tasks(context: StageContext, stage: str, most: int) -> list[Task]:
    """Held-out instructions of `sft` or prompts of `rl`; none where that stage has no data."""
    return PreparedData.open(context.run).tasks(stage, "validation")[:most]


def training_tasks(context: StageContext) -> list[Task]:
    """The prompts of reinforcement learning."""
    return PreparedData.open(context.run).tasks("rl", "train")


def sample_tasks(context: StageContext) -> list[Task]:
    """The same few held-out prompts in every stage, of as many kinds as there are."""
    prepared = PreparedData.open(context.run)
    tasks = prepared.tasks("rl", "validation") or prepared.tasks("sft", "validation")
    by_kind: dict[str, list[Task]] = {}
    for task in tasks:
        by_kind.setdefault(task.kind, []).append(task)
    turns = max(map(len, by_kind.values()), default=0)
    groups = by_kind.values()
    dealt = [group[turn] for turn in range(turns) for group in groups if turn < len(group)]
    return dealt[:_SHOWN]


def held_out_documents(context: StageContext, most: int) -> list[dict[str, Any]]:
    """Rows with `text`, and in the world `kind`, `bits` and `determined`."""
    return PreparedData.open(context.run).documents()[:most]


def replayed_documents(context: StageContext, most: int) -> list[dict[str, Any]]:
    """Held-out rows of the earlier text, with `text`; none where nothing is replayed."""
    return PreparedData.open(context.run).replayed_documents()[:most]


def held_out_pairs(context: StageContext, most: int) -> list[dict[str, Any]]:
    """Rows with `task`, `chosen`, `rejected`, and gold where it is known."""
    return PreparedData.open(context.run).pairs()[:most]


def demonstrations(context: StageContext, most: int) -> list[tuple[Task, str]]:
    """Training demonstrations as text: worked examples for a base model."""
    return PreparedData.open(context.run).demonstrations()[:most]


def references(context: StageContext, most: int) -> list[tuple[Task, str]]:
    """Responses that score 0 on average: demonstrations, or without any the preferred ones."""
    shown = demonstrations(context, most)
    if shown:
        return shown
    pairs = held_out_pairs(context, most)
    return [(Task.from_json(pair["task"]), pair["chosen"]) for pair in pairs]


def reference_rows(context: StageContext, most: int) -> tuple[list[Task], list[list[int]]]:
    """Tasks, and the rows a reward model scores of the reference responses to them."""
    found = references(context, most)
    rows = [context.tokenizer.reward_row(with_response(task.prompt, text)) for task, text in found]
    return [task for task, _ in found], rows
