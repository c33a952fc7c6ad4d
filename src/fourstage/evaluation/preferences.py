"""How well a reward model orders pairs, and against which ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage import tasks as checkers
from fourstage.evaluation.calibration import preference_calibration
from fourstage.evaluation.estimates import Numbers, mean_of
from fourstage.evaluation.responses import with_response
from fourstage.evaluation.resting import correlation, rests_on
from fourstage.evaluation.scoring import Scorer, raw_scores
from fourstage.randomness import permutation
from fourstage.tasks import Task

if TYPE_CHECKING:
    from fourstage.tokenizer import Tokenizer

# Categories of more names than this are told of together.
_MOST_KINDS = 50


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
    model: Scorer,
    tokenizer: Tokenizer,
    pairs: Sequence[Mapping[str, Any]],
    scale: float | None,
    seed: int = 0,
    *,
    log_odds: float | None = 1.0,
) -> Numbers:
    """Expected accuracy on pairs whose gold is known, its ceiling, and what the scores rest on.

    Args:
        pairs: rows with `task`, `chosen`, `rejected`, and where they are known `gold_chosen`,
            `gold_rejected`, `margin`.
        scale: s of `P(a over b) = sigmoid(s (gold_a - gold_b))`, where the labels were drawn so.
            Where it is None, or gold is not known, the label itself is the order to find.
        log_odds: of a difference of 1 in raw scores; None where they are no log-odds, so that there
            is nothing to calibrate.

    Returns:
        `pair_accuracy` (also by kind), `pair_accuracy_ceiling`, `pair_accuracy_shuffled_prompts`
        (each pair judged under another pair's prompt), `right_wrong_accuracy` and
        `both_right_accuracy` (share in gold's order); those of `accuracy_by` and `rests_on`;
        `score_length_correlation`; `calibration`, `calibration_error`.
    """
    tasks = [Task.from_json(pair["task"]) for pair in pairs]
    kinds = [task.kind for task in tasks]
    if len(set(kinds)) > _MOST_KINDS:
        kinds = []
    rows = rows_of_pairs(tokenizer, [task.prompt for task in tasks], pairs)
    scores = raw_scores(model, rows).reshape(-1, 2)
    other = [tasks[i].prompt for i in _derangement(len(tasks), seed)]
    shuffled = raw_scores(model, rows_of_pairs(tokenizer, other, pairs)).reshape(-1, 2)
    lengths = np.array([len(row) for row in rows], np.float64).reshape(-1, 2)
    numbers = Numbers()
    golds = _golds(pairs)
    if golds is not None:
        numbers.update(_by_rightness(tasks, pairs, scores, golds))
    if golds is not None and scale is not None:
        agreed, ceiling = expected_accuracy(scores, golds, scale)
        numbers.add_means("pair_accuracy", agreed, kinds)
        numbers.add_means("pair_accuracy_ceiling", ceiling)
        under_another = expected_accuracy(shuffled, golds, scale)[0]
    else:
        agreed, labels = None, np.tile([1.0, 0.0], (len(pairs), 1))
        numbers.add_means("pair_accuracy", in_order(scores, labels), kinds)
        under_another = in_order(shuffled, labels)
    numbers.add_means("pair_accuracy_shuffled_prompts", under_another)
    numbers.update(accuracy_by(scores, lengths, golds, _margins(pairs)))
    numbers.add("score_length_correlation", correlation(scores.ravel(), lengths.ravel()))
    texts = [(pair["chosen"], pair["rejected"]) for pair in pairs]
    numbers.update(rests_on(scores, lengths, texts, golds))
    if log_odds is not None:
        numbers.extra["calibration"], error = preference_calibration(log_odds * scores, agreed)
        numbers.add("calibration_error", error)
    return numbers


def _golds(pairs: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """[pairs, 2], where all are known."""
    if not all("gold_chosen" in pair for pair in pairs):
        return None
    return np.array([[pair["gold_chosen"], pair["gold_rejected"]] for pair in pairs])


def _margins(pairs: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """[pairs] by how much the chosen is better, where all rows tell it."""
    if not all("margin" in pair for pair in pairs):
        return None
    return np.array([float(pair["margin"]) for pair in pairs])


def accuracy_by(
    scores: np.ndarray,
    lengths: np.ndarray,
    golds: np.ndarray | None = None,
    margins: np.ndarray | None = None,
) -> Numbers:
    """Share of pairs in order, by how much longer the better answer is and how much better.

    The order is gold's where gold is known (pairs of equal gold are left out), else the label's.

    Args:
        scores, lengths, golds: [pairs, 2], the chosen first. margins: [pairs].

    Returns:
        `longer_better_accuracy` and `shorter_better_accuracy`: a model that only counts tokens gets
        1 and 0, or 0 and 1; tables `accuracy_by_length`, in tokens that the better answer is
        longer, and `accuracy_by_margin`, in gold or in the rows' own margins.
    """
    order = np.tile([1.0, 0.0], (len(scores), 1)) if golds is None else golds
    kept = order[:, 0] != order[:, 1]
    found, gap = in_order(scores, order)[kept], (order[:, 0] - order[:, 1])[kept]
    longer = (lengths[:, 0] - lengths[:, 1])[kept] * np.sign(gap)
    numbers = Numbers().add_means("longer_better_accuracy", found[longer > 0])
    numbers.add_means("shorter_better_accuracy", found[longer < 0])
    numbers.extra["accuracy_by_length"] = accuracy_table(longer, found)
    if golds is not None:
        margins = np.abs(golds[:, 0] - golds[:, 1])
    if margins is not None:
        numbers.extra["accuracy_by_margin"] = accuracy_table(margins[kept], found)
    return numbers


def accuracy_table(by: np.ndarray, found: np.ndarray, bins: int = 5) -> list[dict[str, Any]]:
    """{from, to, pairs, accuracy, interval} of bins of about equal counts, equal values together.

    Args:
        by, found: [pairs].
    """
    if not len(by):
        return []
    edges = np.unique(np.quantile(by, np.linspace(0, 1, bins + 1), method="lower"))
    place = np.clip(np.searchsorted(edges, by, "right") - 1, 0, max(0, len(edges) - 2))
    rows = []
    for number in np.unique(place):
        inside = place == number
        share = mean_of(found[inside])
        rows.append(
            {
                "from": float(by[inside].min()),
                "to": float(by[inside].max()),
                "pairs": int(inside.sum()),
                "accuracy": share.value,
                "interval": [share.low, share.high],
            }
        )
    return rows


def rows_of_pairs(
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
