"""Held-out episodes: what they are worth, and how they read, as a stage's model learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.responses import last_turn
from fourstage.model.transformer import Transformer
from fourstage.parallel.group import Group
from fourstage.randomness import seed_for
from fourstage.stages.context import StageContext
from fourstage.stages.drawing import Drawer
from fourstage.stages.judging import Judge
from fourstage.stages.playing import Dialogue, Playing, numbers, transcript
from fourstage.tasks import Task


def measured(
    context: StageContext, model: Transformer, tasks: Sequence[Task], judge: Judge, suffix: str
) -> Numbers:
    """`proxy_reward` and turns of an episode of each held-out task; nothing without an environment,
    or without tasks."""
    if judge.environments is None or not tasks:
        return Numbers()
    dialogues = _episodes(context, model, tasks, judge, "held-out episodes")
    found = Numbers().add_means(
        f"proxy_reward{suffix}", np.array([sum(each.rewards) for each in dialogues])
    )
    for name, value in numbers(dialogues).items():
        found.metrics[f"{name}{suffix}"] = value
    return found


def samples(
    context: StageContext, model: Transformer, tasks: Sequence[Task], judge: Judge
) -> list[dict[str, Any]]:
    """Rows for samples.jsonl: an episode of each task, the environment's words behind `> `."""
    if not tasks:
        return []
    dialogues = _episodes(context, model, tasks, judge, "samples")
    return [
        {
            "prompt": context.tokenizer.decode(each.prompt) or last_turn(task.prompt),
            "response": transcript(each, context.tokenizer),
            "reward": float(sum(each.rewards)),
            "rewards": {"environment": each.fault or list(each.rewards)},
        }
        for task, each in zip(tasks, dialogues, strict=True)
    ]


def _episodes(
    context: StageContext, model: Transformer, tasks: Sequence[Task], judge: Judge, purpose: str
) -> list[Dialogue]:
    """Episodes at temperature 1, by the process that calls alone; the same each time."""
    assert judge.environments is not None, "there is an environment"
    # Measured with the engine here, whatever draws what is trained on.
    changes = {"temperature": 1.0, "engine": None}
    section, seed = context.section.model_copy(update=changes), context.seed
    drawing = Drawer(model, context.tokenizer, tasks, section, seed, Group(), context.say)
    play = Playing(
        section, context.tokenizer, judge.environments, model.config.context, drawing.generate
    )
    with judge.lock:
        return play(
            tasks,
            [seed_for(seed, purpose, "environment", i) for i in range(len(tasks))],
            lambda i, turn: seed_for(seed, purpose, i, turn),
        )
