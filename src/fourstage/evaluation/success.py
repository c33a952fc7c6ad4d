"""How often a model does what it is asked: greedy, judged by each task's checker."""

from __future__ import annotations

from collections.abc import Sequence

from fourstage import tasks as checkers
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.responses import Chat, Response, last_turn
from fourstage.tasks import Task

EXAMPLES_SHOWN = 3


def checkable(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that a program can check."""
    return [task for task in tasks if task.facts.get("checker")]


def task_success(chat: Chat, tasks: Sequence[Task], name: str = "task_success") -> Numbers:
    """The share of tasks done by greedy responses through the chat template, also by kind."""
    tasks = checkable(tasks)
    responses = chat.respond([task.prompt for task in tasks])
    return judged(name, tasks, responses)


def few_shot_success(
    chat: Chat,
    tasks: Sequence[Task],
    examples: Sequence[tuple[Task, str]],
    name: str = "base_few_shot_task_success",
) -> Numbers:
    """The same as plain text, as a base model is used: three worked examples stand before it.

        <prompt>
        <response>
        (blank line, twice more, then the prompt that is asked)

    Examples are of the task's own kind where there are three; the response ends at a blank line. A
    prompt that the context cannot hold with all three gets fewer of them.
    """
    tasks = checkable(tasks)
    by_kind: dict[str, list[tuple[Task, str]]] = {}
    for example in examples:
        by_kind.setdefault(example[0].kind, []).append(example)
    for pool in by_kind.values():
        pool.sort(key=lambda example: len(last_turn(example[0].prompt)) + len(example[1]))
    rows = []
    for index, task in enumerate(tasks):
        fitting = by_kind.get(task.kind, [])
        pool = fitting if len(fitting) >= EXAMPLES_SHOWN else list(examples)
        rows.append(_prompt_ids(chat, task, pool, index))
    tokenizer = chat.tokenizer
    responses = chat.continued(rows, 0.0, "few-shot", (tokenizer.end_of_text,))
    return judged(name, tasks, [_first_paragraph(response) for response in responses])


def _prompt_ids(chat: Chat, task: Task, pool: Sequence[tuple[Task, str]], turn: int) -> list[int]:
    """Three examples of the pool in turn, else its first (shortest) three, else fewer."""
    room = chat.model.config.context - chat.max_new_tokens
    count = min(EXAMPLES_SHOWN, len(pool))
    choices = [[pool[(turn * count + place) % len(pool)] for place in range(count)]]
    choices += [list(pool[:fewer]) for fewer in range(count, -1, -1)]
    for shown in choices:
        worked = "".join(f"{last_turn(t.prompt)}\n{text}\n\n" for t, text in shown)
        ids = chat.tokenizer.encode(worked + last_turn(task.prompt) + "\n")
        if len(ids) < room:
            break
    return [chat.tokenizer.start_of_text, *ids]


def _first_paragraph(response: Response) -> Response:
    text = response.text.strip().split("\n\n")[0].strip()
    return Response(response.prompt, response.tokens, text, response.finished)


def judged(name: str, tasks: Sequence[Task], responses: Sequence[Response]) -> Numbers:
    """The share of `responses` that do what `tasks` ask, also by kind; nothing without tasks."""
    done = [checkers.success(t, r.text) for t, r in zip(tasks, responses, strict=True)]
    return Numbers().add_means(name, done, [task.kind for task in tasks])
