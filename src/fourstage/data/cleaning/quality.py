"""A small classifier of quality: is a text more like a good sample, or like the pile?

Hashed words and pairs of words into logistic regression, as the filters of GPT-3 (Brown et al.
2020, appendix A) and of DCLM (Li et al. 2024, section 4.4) are.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fourstage import files
from fourstage.data.cleaning.features import UNSPACED
from fourstage.data.cleaning.verdict import KEPT, Verdict
from fourstage.errors import InputError
from fourstage.randomness import permutation

BUCKETS = 1 << 18
EPOCHS = 5
LEARNING_RATE = 0.5
LEAST_EXAMPLES = 10
# Of GPT-3: the larger, the fewer texts of low score are kept.
PARETO_ALPHA = 9.0
# Enough of a text to tell; one book is not to weigh as a thousand pages.
_CHARACTERS = 10_000
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on hashed words.

    Attributes:
        weights: [buckets] float32. bias: of all texts.
    """

    weights: np.ndarray
    bias: float

    def score(self, text: str) -> float:
        """Probability, in [0, 1], that a text is of the good sample rather than of the pile."""
        buckets, values = _features(text, len(self.weights))
        return _sigmoid(float(self.weights[buckets].astype(np.float64) @ values) + self.bias)

    def save(self, path: str | Path) -> None:
        """Writes it as safetensors."""
        tensors = {"weights": self.weights, "bias": np.array([self.bias], np.float64)}
        files.write_bytes(Path(path), save(tensors))

    @classmethod
    def open(cls, path: str | Path) -> Classifier:
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing or holds something else.
        """
        try:
            tensors = load(Path(path).read_bytes())
            return cls(tensors["weights"], float(tensors["bias"][0]))
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(
                f"{path}: no quality classifier ({error}); write one with "
                "fourstage.data.cleaning.train_classifier(good, pile).save(path)"
            ) from error


def train_classifier(
    good: Iterable[str], pile: Iterable[str], buckets: int = BUCKETS, seed: int = 0
) -> Classifier:
    """Learns to tell a good sample from the pile; both count the same, however large they are.

    Adagrad (Duchi et al. 2011) over the texts one by one, in an order that depends on `seed` alone.

    Raises:
        InputError: fewer than ten texts of either.
    """
    samples = [[_features(text, buckets) for text in texts] for texts in (pile, good)]
    if min(map(len, samples)) < LEAST_EXAMPLES:
        raise InputError(
            f"a quality classifier needs {LEAST_EXAMPLES} good texts and {LEAST_EXAMPLES} of the "
            f"pile; there are {len(samples[1])} and {len(samples[0])}"
        )
    texts = [*samples[0], *samples[1]]
    labels = [0.0] * len(samples[0]) + [1.0] * len(samples[1])
    shares = [len(texts) / (2 * len(sample)) for sample in samples]
    weights, squares = np.zeros(buckets), np.full(buckets, 1e-8)
    bias, bias_square = 0.0, 1e-8
    for epoch in range(EPOCHS):
        for index in permutation(len(texts), seed, "quality", epoch).tolist():
            places, values = texts[index]
            label = labels[index]
            error = _sigmoid(float(weights[places] @ values) + bias) - label
            gradient = shares[int(label)] * error * values
            squares[places] += gradient**2
            weights[places] -= LEARNING_RATE * gradient / np.sqrt(squares[places])
            bias_square += error**2
            bias -= LEARNING_RATE * error / math.sqrt(bias_square)
    return Classifier(weights.astype(np.float32), bias)


@functools.cache
def classifier_at(path: Path) -> Classifier:
    """The classifier of a file, read once by each process."""
    return Classifier.open(path)


def quality(text: str, classifier: Classifier, threshold: float | None = None) -> Verdict:
    """Drops texts that score low.

    Below `threshold`; without one, by GPT-3's rule, which keeps some of every score: kept where a
    draw from a Pareto distribution (Lomax, alpha 9) exceeds 1 - score. What is drawn depends on
    nothing but the text.
    """
    score = classifier.score(text)
    if threshold is not None:
        return Verdict("score", f"{score:.4g} < {threshold:g}") if score < threshold else KEPT
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "little") + 1) / 2**64
    draw = uniform ** (-1 / PARETO_ALPHA) - 1
    return KEPT if draw > 1 - score else Verdict("score", f"{score:.4g} <= 1 - {draw:.4g}")


def _features(text: str, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of the words and pairs of words of a text, and the values there, of length 1."""
    words: Sequence[str] = _WORD.findall(text[:_CHARACTERS].lower())
    hashed = {
        word: zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in dict.fromkeys(words)
    }
    ones = np.fromiter(map(hashed.__getitem__, words), np.uint64, len(words))
    pairs = ones[:-1] * np.uint64(31) + ones[1:] + np.uint64(1)
    # The high bits of the product are the well mixed ones.
    keys = (np.concatenate([ones, pairs]) * _MIX) >> np.uint64(32)
    places, counts = np.unique(keys % np.uint64(buckets), return_counts=True)
    values = np.sqrt(counts.astype(np.float64))
    return places.astype(np.int64), values / max(1.0, float(np.linalg.norm(values)))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, value))))
