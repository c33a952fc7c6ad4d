"""How well a reward model orders pairs, and against which ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage import tasks as checkers
from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.responses import with_response
from fourstage.evaluation.scoring import raw_scores
from fourstage.model.transformer import Transformer
from fourstage.randomness import permutation
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer


def expected_accuracy(
    scores: np.ndarray, golds: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair, how likely a Bradley-Terry judge agrees with the model's order.

    `sigmoid(scale |gold difference|)` where the model orders the pair as gold does, one minus that
    where it does not, 0.5 on equal scores. No noise of drawn labels is left in it.

    Args:
        scores, golds: [pairs, 2].

    Returns:
        The expected accuracy [pairs], and its ceiling [pairs]: every pair ordered as gold does.
    """
    gap = golds[:, 0] - golds[:, 1]
    ceiling = 1 / (1 + np.exp(-scale * np.abs(gap)))
    order = np.sign(scores[:, 0] - scores[:, 1]) * np.sign(gap)
    return 0.5 + order * (ceiling - 0.5), ceiling


def in_order(scores: np.ndarray, golds: np.ndarray) -> np.ndarray:
    """[pairs] 1 where the model orders a pair as gold does, 0 where not, 0.5 on equal scores."""
    order = np.sign(scores[:, 0] - scores[:, 1]) * np.sign(golds[:, 0] - golds[:, 1])
    return (order + 1) / 2


def pair_accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    pairs: Sequence[Mapping[str, Any]],
    scale: float | None,
    seed: int = 0,
) -> Numbers:
    """Expected accuracy on pairs whose gold is known, its ceiling, and what the scores rest on.

    Args:
        pairs: rows with `task`, `chosen`, `rejected`, and where they are known `gold_chosen`,
            `gold_rejected`.
        scale: s of `P(a over b) = sigmoid(s (gold_a - gold_b))`, where the labels were drawn so.
            Where it is None, or gold is not known, the label itself is the order to find.

    Returns:
        `pair_accuracy` (also by kind), `pair_accuracy_ceiling`, `pair_accuracy_shuffled_prompts`
        (each pair judged under another pair's prompt), `right_wrong_accuracy` and
        `both_right_accuracy` (share in gold's order), `score_length_correlation`, `calibration`.
    """
    tasks = [Task.from_json(pair["task"]) for pair in pairs]
    rows = _rows(tokenizer, [task.prompt for task in tasks], pairs)
    scores = raw_scores(model, rows).reshape(-1, 2)
    other = [tasks[i].prompt for i in _derangement(len(tasks), seed)]
    shuffled = raw_scores(model, _rows(tokenizer, other, pairs)).reshape(-1, 2)
    lengths = np.array([len(row) for row in rows], np.float64)
    numbers = Numbers()
    golds = None
    if all("gold_chosen" in pair for pair in pairs):
        golds = np.array([[pair["gold_chosen"], pair["gold_rejected"]] for pair in pairs])
        numbers.update(_by_rightness(tasks, pairs, scores, golds))
    if golds is not None and scale is not None:
        accuracy, ceiling = expected_accuracy(scores, golds, scale)
        numbers.add_means("pair_accuracy", accuracy, [task.kind for task in tasks])
        numbers.add_means("pair_accuracy_ceiling", ceiling)
        under_another = expected_accuracy(shuffled, golds, scale)[0]
    else:
        labels = np.tile([1.0, 0.0], (len(pairs), 1))
        numbers.add_means("pair_accuracy", in_order(scores, labels), [task.kind for task in tasks])
        under_another = in_order(shuffled, labels)
    numbers.add_means("pair_accuracy_shuffled_prompts", under_another)
    numbers.add("score_length_correlation", _correlation(scores.ravel(), lengths))
    numbers.extra["calibration"] = calibration(scores)
    return numbers


def _rows(
    tokenizer: Tokenizer, prompts: Sequence[Any], pairs: Sequence[Mapping[str, Any]]
) -> list[list[int]]:
    """The chosen and the rejected row of each pair, in turn."""
    return [
        tokenizer.reward_row(with_response(prompt, pair[which]))
        for prompt, pair in zip(prompts, pairs, strict=True)
        for which in ("chosen", "rejected")
    ]


def _derangement(count: int, seed: int) -> list[int]:
    """Another index for each index: a cycle through all of them in a random order."""
    order = permutation(count, seed, "shuffled prompts")
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)
    return other.tolist()


def _by_rightness(
    tasks: Sequence[Task],
    pairs: Sequence[Mapping[str, Any]],
    scores: np.ndarray,
    golds: np.ndarray,
) -> Numbers:
    """Share in gold's order of pairs with one right answer, and of pairs with two."""
    right = np.array(
        [
            [checkers.success(task, pair["chosen"]), checkers.success(task, pair["rejected"])]
            for task, pair in zip(tasks, pairs, strict=True)
        ]
    )
    order, kinds = in_order(scores, golds), np.array([task.kind for task in tasks])
    told_apart = golds[:, 0] != golds[:, 1]
    mixed = (right[:, 0] != right[:, 1]) & told_apart
    both = right.all(axis=1) & told_apart
    numbers = Numbers().add_means("right_wrong_accuracy", order[mixed], kinds[mixed].tolist())
    return numbers.add_means("both_right_accuracy", order[both])


def calibration(scores: np.ndarray, bins: int = 10) -> list[list[float]]:
    """[predicted, observed] preference in equal bins; `scores` [pairs, 2], the chosen first."""
    gap = scores[:, 0] - scores[:, 1]
    predicted = 1 / (1 + np.exp(-np.abs(gap)))
    observed = (np.sign(gap) + 1) / 2
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [[float(predicted[part].mean()), float(observed[part].mean())] for part in parts]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
