"""Answers with what is said of them, as token rows: rankings, scores, thumbs, and judged steps.

Beside each row of a store stands what a source reads back (`data.comparing`):

    {"group", "place", "quality"?, "head"?}    an answer of a ranking or a comparison
    {"labels": {head: number}}                 an answer judged alone; "" where there is one head
    {"cells": [...], "labels": [...]}          cells at which steps end, and whether each is right
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourstage.data.batch import Example
from fourstage.data.encoding import answered
from fourstage.data.encoding import cut_to as cut_response
from fourstage.tasks import Task
from fourstage.tokenizer import Tokenizer

Written = tuple[Example, dict[str, Any]]
# Between two steps of an answer, as TRL writes them.
STEP_END = "\n"


@dataclass(frozen=True)
class Ranking:
    """Two or more answers to one task.

    Attributes:
        places: 1 is best; ties share theirs.
        qualities: scores that the places come from, where they were told.
        head: which head of the reward model they are about.
    """

    task: Task
    responses: tuple[str, ...]
    places: tuple[int, ...]
    qualities: tuple[float, ...] = ()
    head: str = ""


@dataclass(frozen=True)
class Judged:
    """An answer and its score or its thumb, or one for each head that judged it."""

    task: Task
    response: str
    labels: Mapping[str, float]


@dataclass(frozen=True)
class Stepped:
    """An answer in steps, and how right each is, in [0, 1]."""

    task: Task
    steps: tuple[str, ...]
    labels: tuple[float, ...]


def ranking_rows(
    tokenizer: Tokenizer, ranking: Ranking, group: int, context: int, counts: Counter[str]
) -> list[Written]:
    """A row for each answer; none where the prompt fills the context.

    Answers that are too long all lose what lies past the same cell, so that length alone does not
    tell them apart.
    """
    cut = [cut_response(tokenizer, ranking.task.prompt, r, context) for r in ranking.responses]
    if None in cut:
        counts["too_long"] += 1
        return []
    counts["cut"] += any(a != b for a, b in zip(cut, ranking.responses, strict=True))
    rows = []
    for index, response in enumerate(cut):
        told: dict[str, Any] = {"group": group, "place": ranking.places[index]}
        if ranking.qualities:
            told["quality"] = ranking.qualities[index]
        if ranking.head:
            told["head"] = ranking.head
        rows.append((_row(tokenizer, ranking.task, response or ""), told))
    return rows


def judged_rows(
    tokenizer: Tokenizer, judged: Judged, context: int, counts: Counter[str]
) -> list[Written]:
    """The row of an answer; one that is too long loses its end."""
    cut = cut_response(tokenizer, judged.task.prompt, judged.response, context)
    if cut is None:
        counts["too_long"] += 1
        return []
    counts["cut"] += cut != judged.response
    return [(_row(tokenizer, judged.task, cut), {"labels": dict(judged.labels)})]


def stepped_rows(
    tokenizer: Tokenizer, stepped: Stepped, context: int, counts: Counter[str]
) -> list[Written]:
    """The row of an answer with the cells that its steps are judged at.

    The last step is judged where any answer is scored, so that its score is the whole answer's.
    Steps that do not fit the context are left out.
    """
    steps = [" ".join(step.splitlines()).strip() for step in stepped.steps]
    for kept in range(len(steps), 0, -1):
        shown = _row(tokenizer, stepped.task, STEP_END.join(steps[:kept]))
        if len(shown.tokens) <= context:
            break
    else:
        counts["too_long"] += 1
        return []
    counts["cut"] += kept < len(steps)
    first = len(tokenizer.chat_prompt(stepped.task.prompt))
    response = tokenizer.encode(STEP_END.join(steps[:kept]))
    ends = [first + cell for cell in step_ends(tokenizer, response)]
    if len(ends) != kept - 1:
        counts["steps_run_together"] += 1
        return []
    labels = list(stepped.labels[:kept])
    return [(shown, {"cells": [*ends, len(shown.tokens) - 1], "labels": labels})]


def step_ends(tokenizer: Tokenizer, response: Sequence[int]) -> list[int]:
    """Indices of the tokens in which a step of a response ends, but for the last step.

    A step ends with its line; lines without anything on them are none. The ids are those given,
    drawn or encoded: nothing is tokenised again.
    """
    ends, said = [], False
    for index, token in enumerate(response):
        before, line_end, after = tokenizer.decode_bytes([token]).partition(STEP_END.encode())
        said = said or bool(before.strip())
        if line_end and said:
            ends.append(index)
            said = False
        said = said or bool(after.strip())
    return ends if said or not ends else ends[:-1]


def _row(tokenizer: Tokenizer, task: Task, response: str) -> Example:
    return tokenizer.reward_example(answered(task.prompt, response))
