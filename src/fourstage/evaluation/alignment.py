"""What a policy's responses are worth, and how far it has moved from the model it started as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from fourstage import tasks as checkers
from fourstage.data.batch import Batch, Example
from fourstage.evaluation.diversity import diversity
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.responses import Response
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.evaluation.success import checkable
from fourstage.model.transformer import Transformer
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


def gold_rewards(name: str, tasks: Sequence[Task], responses: Sequence[Response]) -> Numbers:
    """Mean gold of the responses to tasks that have a checker, also by kind."""
    judged = [(t, r) for t, r in zip(tasks, responses, strict=True) if t.facts.get("checker")]
    golds = [checkers.gold(task, response.text) for task, response in judged]
    return Numbers().add_means(name, golds, [task.kind for task, _ in judged])


def gold_ceiling(tasks: Sequence[Task], name: str = "gold_reward_ceiling") -> Numbers:
    """Mean gold of the best response that exists to each task, also by kind."""
    tasks = checkable(tasks)
    best = [checkers.best_gold(task) for task in tasks]
    return Numbers().add_means(name, best, [task.kind for task in tasks])


def reward_rows(tokenizer: Tokenizer, responses: Sequence[Response]) -> list[list[int]]:
    """The rows a reward model scores: prompt, response, its end, `<|reward|>`; ids as drawn.

    A response that has not ended its turn is scored as if it had ended there.
    """
    empty = tokenizer.reward_row([{"role": "assistant", "content": ""}])
    end = empty[empty.index(tokenizer.end_of_turn) :]
    rows = []
    for each in responses:
        ended = bool(each.tokens) and each.tokens[-1] in tokenizer.stop_ids
        rows.append([*each.prompt, *(each.tokens[:-1] if ended else each.tokens), *end])
    return rows


def kl_per_response(
    policy: Transformer, reference: Transformer, responses: Sequence[Response]
) -> np.ndarray:
    """[responses] `sum over tokens of log policy - log reference`, in nats.

    Responses must have been drawn from `policy` at temperature 1 without truncation; the mean then
    is an unbiased estimate of KL(policy || reference) a response (k1).
    """
    examples = [
        Example(
            np.array([*each.prompt, *each.tokens]),
            np.arange(len(each.prompt) + len(each.tokens)) >= len(each.prompt),
        )
        for each in responses
    ]
    batch = Batch.language(examples)
    gap = trained_logprobs(policy, batch) - trained_logprobs(reference, batch)
    sums = torch.zeros(len(examples)).index_add(0, batch.document_ids, gap)
    return sums.numpy()


def spreads(responses: Sequence[Response], size: int, suffix: str) -> Numbers:
    """The diversity of responses of which every `size` in a row are to one prompt."""
    groups = [responses[i : i + size] for i in range(0, len(responses), size)]
    return diversity([[each.tokens for each in group] for group in groups], suffix)
