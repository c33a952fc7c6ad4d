"""Fixed prompts through a stage's model as it learns: rows for samples.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourstage import tasks as checkers
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.responses import last_turn
from fourstage.evaluation.scoring import scores
from fourstage.model.transformer import Transformer
from fourstage.stages.context import StageContext
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
    reward_model: Transformer | None = None,
) -> list[dict[str, Any]]:
    """Responses at temperature 1, with their gold and the reward model's score where there are."""
    done = context.chat(model).respond([task.prompt for task in tasks], 1.0, "samples")
    rows: list[dict[str, Any]] = [
        {"prompt": last_turn(task.prompt), "response": each.text}
        for task, each in zip(tasks, done, strict=True)
    ]
    for row, task, each in zip(rows, tasks, done, strict=True):
        if task.facts.get("checker"):
            row["gold"] = checkers.gold(task, each.text)
    if reward_model is not None and rows:
        found = scores(reward_model, reward_rows(context.tokenizer, done))
        for row, score in zip(rows, found, strict=True):
            row["reward"] = float(score)
    return rows
