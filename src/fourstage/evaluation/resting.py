"""What scores rest on besides quality: length and format, within pairs and beyond gold.

Differences within a pair leave out what its prompt does to score and length alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from fourstage.evaluation.estimates import RESAMPLES, Estimate, Numbers
from fourstage.randomness import numpy_generator

_LIST = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s", re.M)
# What of a response's form a judge may come to like.
FORMAT: dict[str, Callable[[str], int]] = {
    "lines": lambda text: text.count("\n"),
    "lists": lambda text: len(_LIST.findall(text)),
    "markup": lambda text: len(re.findall(r"\*\*|__|`|^#", text, re.M)),
    "sentences": lambda text: len(re.findall(r"[.!?\u3002\uff01\uff1f]", text)),
    "exclamations": lambda text: text.count("!"),
    "digits": lambda text: len(re.findall(r"\d", text)),
    "capitals": lambda text: sum(letter.isupper() for letter in text),
}
# Below this share of its variance a difference is nothing but rounding.
_NOTHING = 1e-9


def partial_correlation(
    first: np.ndarray, second: np.ndarray, given: np.ndarray | None = None, seed: int = 0
) -> Estimate | None:
    """Correlation of differences within pairs, and beyond what `given` explains of both.

    `(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2))` (Yule, 1907). Which of a pair comes first
    is arbitrary, so the mean is that of both orders: 0. 0 where `given` explains all of one.

    Args:
        first, second, given: [pairs] one answer's less the other's.

    Returns:
        With the 95% interval of a bootstrap over pairs; None where one does not differ in any pair.
    """
    columns = [first, second] if given is None else [first, second, given]
    x = np.stack([np.asarray(column, np.float64) for column in columns])
    if not x[0].any() or not x[1].any():
        return None
    products = (x[:, None, :] * x[None, :, :]).reshape(len(x) ** 2, -1)
    generator = numpy_generator(seed, "bootstrap of correlations", x.shape[1])
    drawn = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        rows = generator.integers(0, x.shape[1], x.shape[1])
        counts = np.bincount(rows, minlength=x.shape[1])
        drawn[index] = _partial(products @ counts, len(x))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(_partial(products.sum(axis=1), len(x)), float(low), float(high))


def _partial(products: np.ndarray, columns: int) -> float:
    """The correlation of the first two of some columns given the third, from their products."""
    moments = products.reshape(columns, columns)
    scale = np.sqrt(np.diag(moments))
    scale[scale == 0] = 1.0
    r = moments / np.outer(scale, scale)
    if columns == 2:
        return float(r[0, 1])
    left = (1 - r[0, 2] ** 2, 1 - r[1, 2] ** 2)
    if min(left) < _NOTHING:
        return 0.0
    return float((r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt(left[0] * left[1]))


def rests_on(
    scores: np.ndarray,
    lengths: np.ndarray,
    texts: Sequence[tuple[str, str]],
    golds: np.ndarray | None = None,
) -> Numbers:
    """How differences of scores go with those of length and format, and beyond gold's.

    Args:
        scores, lengths, golds: [pairs, 2]. texts: of both answers of each pair.

    Returns:
        `score_length_within_pairs`, `score_format_within_pairs/feature`; where gold is known also
        `score_length_beyond_gold`, `score_format_beyond_gold/feature`, and
        `score_variance_by_length`, the share of all variance of differences of scores that length
        explains beyond gold: of a score that gold explains nearly whole, a correlation with the
        rest is one with next to nothing. A feature in which no two answers differ is left out.
    """
    numbers, by = Numbers(), scores[:, 0] - scores[:, 1]
    known = None if golds is None else golds[:, 0] - golds[:, 1]
    found = {"length": lengths[:, 0] - lengths[:, 1]}
    if known is not None and by.any() and found["length"].any():
        numbers.add("score_variance_by_length", added_variance(by, found["length"], known))
    for name, count in FORMAT.items():
        found[f"format/{name}"] = np.array([count(a) - count(b) for a, b in texts], np.float64)
    for name, difference in found.items():
        kind, _, feature = name.partition("/")
        ending = f"/{feature}" if feature else ""
        _add(numbers, f"score_{kind}_within_pairs{ending}", by, difference)
        if known is not None:
            _add(numbers, f"score_{kind}_beyond_gold{ending}", by, difference, known)
    return numbers


def added_variance(first: np.ndarray, second: np.ndarray, given: np.ndarray) -> float:
    """The share of `first`'s squares that `second` explains beside `given`, in [0, 1].

    `R^2(given, second) - R^2(given)` of least squares through the origin: which of a pair comes
    first is arbitrary.
    """

    def left(*columns: np.ndarray) -> float:
        known = np.stack(columns, 1)
        fitted = known @ np.linalg.lstsq(known, first, rcond=None)[0]
        return float(np.square(first - fitted).sum())

    gained = left(given) - left(given, second)
    return max(0.0, gained / float(np.square(first).sum()))


def _add(
    numbers: Numbers,
    name: str,
    first: np.ndarray,
    second: np.ndarray,
    given: np.ndarray | None = None,
) -> None:
    value = partial_correlation(first, second, given)
    if value is not None:
        numbers.add(name, value)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
