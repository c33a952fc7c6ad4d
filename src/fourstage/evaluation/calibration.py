"""Whether a model's probabilities are those that things come out with, and how it ranks."""

from __future__ import annotations

import numpy as np


def preference_calibration(
    scores: np.ndarray, agreed: np.ndarray | None = None, bins: int = 10
) -> tuple[list[list[float]], float]:
    """How sure a reward model is of its order of pairs, against how often the labels agree.

    Args:
        scores: [pairs, 2], the chosen first; their difference is a log-odds.
        agreed: [pairs] how likely a label agrees with the model's order, where that is known: it
            takes the noise of the drawn labels out.

    Returns:
        `reliability` of the predicted `sigmoid(|difference|)`, and its calibration error.
    """
    gap = scores[:, 0] - scores[:, 1]
    predicted = 1 / (1 + np.exp(-np.abs(gap)))
    observed = (np.sign(gap) + 1) / 2 if agreed is None else agreed
    return reliability(predicted, observed, bins), calibration_error(predicted, observed, bins)


def reliability(predicted: np.ndarray, observed: np.ndarray, bins: int = 10) -> list[list[float]]:
    """[mean predicted, mean observed] of bins that hold as many items each, by prediction."""
    return [[float(p), float(o)] for p, o, _ in _bins(predicted, observed, bins)]


def calibration_error(predicted: np.ndarray, observed: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: `sum_b n_b / n |mean predicted - mean observed|`.

    Naeini et al. (2015), with bins of equal counts (Nguyen and O'Connor, 2015): those of equal
    width leave some with a few items, whose noise counts as error.
    """
    parts = _bins(predicted, observed, bins)
    return float(sum(n * abs(p - o) for p, o, n in parts) / max(1, len(predicted)))


def _bins(predicted: np.ndarray, observed: np.ndarray, bins: int) -> list[tuple[float, float, int]]:
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(predicted[part].mean(), observed[part].mean(), len(part)) for part in parts]


def area_under_curve(scores: np.ndarray, good: np.ndarray) -> float:
    """How likely a good item scores above a bad one, equal scores half (Mann and Whitney, 1947).

    Args:
        scores: [items]. good: [items] bool.

    Raises:
        ValueError: there are none of one of the two.
    """
    good = np.asarray(good, bool)
    if good.all() or not good.any():
        raise ValueError("an area under the curve needs good and bad items")
    bad = np.sort(scores[~good])
    below = np.searchsorted(bad, scores[good], "left")
    even = np.searchsorted(bad, scores[good], "right") - below
    return float((below + even / 2).mean() / len(bad))
