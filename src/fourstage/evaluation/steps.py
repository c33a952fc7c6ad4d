"""Responses scored step by step by a process reward model."""

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

Whole = Literal["least", "product", "last"]


def step_scores(
    model: Transformer, tokenizer: Tokenizer, responses: Sequence[Response]
) -> list[np.ndarray]:
    """Of each response the raw score at the end of each of its steps, a log-odds of being right.

    The ids are those that were drawn; the last step is scored where a whole answer is.
    """
    rows = reward_rows(tokenizer, responses)
    cells = []
    for row, each in zip(rows, responses, strict=True):
        ended = bool(each.tokens) and each.tokens[-1] in tokenizer.stop_ids
        said = each.tokens[:-1] if ended else each.tokens
        first = len(each.prompt)
        cells.append([*(first + end for end in step_ends(tokenizer, said)), len(row) - 1])
    return cell_scores(model, [Example(np.asarray(row)) for row in rows], cells)


def whole_score(steps: np.ndarray, whole: Whole = "least") -> float:
    """The probability that a response is right, from the log-odds of its steps [steps].

    `least` is that of its weakest step (Wang et al., *Math-Shepherd*, 2024), `product` that of
    all together (Lightman et al., 2023), `last` that of the end alone.
    """
    right = 1 / (1 + np.exp(-np.asarray(steps, np.float64)))
    return float({"least": right.min(), "product": right.prod(), "last": right[-1]}[whole])
