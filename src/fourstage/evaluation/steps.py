"""Responses scored step by step by a process reward model, and what that is worth as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from fourstage.data.batch import Example
from fourstage.data.judgements import step_ends
from fourstage.evaluation.alignment import reward_rows
from fourstage.evaluation.judgements import cell_scores
from fourstage.evaluation.responses import Response
from fourstage.model.transformer import Transformer

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

Whole = Literal["least", "mean", "product", "last"]
Placed = Literal["each", "progress"]


def step_places(tokenizer: Tokenizer, response: Response) -> list[int]:
    """Indices of the tokens at which a response's steps end; of the last one its last token."""
    ended = bool(response.tokens) and response.tokens[-1] in tokenizer.stop_ids
    said = response.tokens[:-1] if ended else response.tokens
    return [*step_ends(tokenizer, said), len(response.tokens) - 1]


def step_scores(
    model: Transformer, tokenizer: Tokenizer, responses: Sequence[Response]
) -> list[np.ndarray]:
    """Of each response the raw score at the end of each of its steps, a log-odds of being right.

    The ids are those that were drawn; the last step is scored where a whole answer is. A row longer
    than the context is read from its end.
    """
    rows, cells = [], []
    for row, each in zip(reward_rows(tokenizer, responses), responses, strict=True):
        over = max(0, len(row) - model.config.context)
        ends = [len(each.prompt) + place for place in step_places(tokenizer, each)[:-1]]
        rows.append(Example(np.asarray(row[over:])))
        cells.append([max(0, end - over) for end in [*ends, len(row) - 1]])
    return cell_scores(model, rows, cells)


def probabilities(steps: np.ndarray) -> np.ndarray:
    """[steps] how likely each step is right, from its log-odds."""
    # exp of a large number is infinite, and 1 over that 0, as it should be.
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-np.asarray(steps, np.float64)))


def whole_score(steps: np.ndarray, whole: Whole = "least") -> float:
    """The probability that a response is right, from the log-odds of its steps [steps].

    `least` is that of its weakest step (Wang et al., *Math-Shepherd*, 2024), `product` that of
    all together (Lightman et al., 2023), `last` that of the end alone; `mean` is over its steps.
    """
    right = probabilities(steps)
    return float(
        {"least": right.min(), "mean": right.mean(), "product": right.prod(), "last": right[-1]}[
            whole
        ]
    )


def rewards_of_steps(steps: np.ndarray, placed: Placed) -> np.ndarray:
    """[steps] the reward at the end of each step, from their log-odds [steps].

    `each` is the probability that the step is right, over the number of steps (as in
    *Math-Shepherd*, but for that number): their sum is the mean, and no answer gains by more steps.
    `progress` is by how much a step raises the probability, from even odds at the start: their sum
    is the last one less a half (potential-based shaping, Ng et al., 1999).
    """
    right = probabilities(steps)
    if placed == "each":
        return right / len(right)
    return np.diff(right, prepend=0.5)
