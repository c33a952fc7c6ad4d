"""Fixed prompts through a stage's model as it learns: rows for samples.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourstage import tasks as checkers
from fourstage.evaluation.responses import last_turn
from fourstage.model.transformer import Transformer
from fourstage.stages.context import StageContext
from fourstage.stages.judging import Judge
from fourstage.tasks import Task

_OPENINGS = 2


def continuations(
    context: StageContext, model: Transformer, texts: Sequence[str], tasks: Sequence[Task]
) -> list[dict[str, Any]]:
    """Openings of held-out documents, then the later stages' prompts as plain text, continued."""
    prompts = [opening(text) for text in texts[:_OPENINGS]]
    prompts += [last_turn(task.prompt) for task in tasks]
    done = context.chat(model).complete(prompts, 1.0, "samples")
    return [
        {"prompt": prompt, "response": each.text}
        for prompt, each in zip(prompts, done, strict=True)
    ]


def opening(text: str) -> str:
    """The first words: about twenty characters, up to the end of a word where there is one."""
    space = text.find(" ", 20)
    return text[: space if 0 < space < 40 else 20]


def answers(
    context: StageContext,
    model: Transformer,
    tasks: Sequence[Task],
    judge: Judge | None = None,
) -> list[dict[str, Any]]:
    """Responses at temperature 1, with their gold and their rewards where there are any.

    `reward` is what training would get; of several parts `rewards` has each one's number, or why
    it has none.
    """
    done = context.chat(model).respond([task.prompt for task in tasks], 1.0, "samples")
    rows: list[dict[str, Any]] = [
        {"prompt": last_turn(task.prompt), "response": each.text}
        for task, each in zip(tasks, done, strict=True)
    ]
    for row, task, each in zip(rows, tasks, done, strict=True):
        if task.facts.get("checker"):
            row["gold"] = checkers.gold(task, each.text)
    if judge is not None and judge.can_judge and rows:
        judged = judge(tasks, done)
        for index, row in enumerate(rows):
            row["reward"] = judged.scores[index]
            if judge.section.rewards:
                row["rewards"] = {
                    name: found[index].fault or found[index].score
                    for name, found in judged.outcomes.items()
                }
    return rows
