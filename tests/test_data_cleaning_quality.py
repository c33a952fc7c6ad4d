"""The quality classifier tells what it was taught, the same on every run."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fourstage.data.cleaning import Classifier, Cleaner, train_classifier
from fourstage.data.cleaning.quality import quality
from fourstage.errors import InputError

GOOD_WORDS = "river mountain story because therefore although quietly morning letter friend".split()
PILE_WORDS = "buy cheap click offer discount sale casino bonus shipping deal".split()
BOTH = "the a of and to in is it was for".split()


def _texts(words: list[str], seed: int, count: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words + BOTH, k=40)) for _ in range(count)]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return train_classifier(_texts(GOOD_WORDS, 1), _texts(PILE_WORDS, 2))


def test_unseen_texts_are_told_apart(classifier):
    good = [classifier.score(text) for text in _texts(GOOD_WORDS, 3)]
    pile = [classifier.score(text) for text in _texts(PILE_WORDS, 4)]
    assert all(0 <= score <= 1 for score in good + pile)
    assert min(good) > 0.8 and max(pile) < 0.2


def test_chinese_is_learnt_by_characters():
    good = ["".join(random.Random(i).choices("山水月花春风夜雨", k=30)) for i in range(20)]
    pile = ["".join(random.Random(i).choices("买卖优惠点击价格", k=30)) for i in range(20)]
    learnt = train_classifier(good, pile)
    assert learnt.score("春风花月夜") > 0.5 > learnt.score("优惠价格点击")


def test_training_twice_gives_the_same_weights(classifier):
    again = train_classifier(_texts(GOOD_WORDS, 1), _texts(PILE_WORDS, 2))
    assert np.array_equal(again.weights, classifier.weights)
    assert again.bias == classifier.bias


def test_what_was_saved_scores_the_same(classifier, tmp_path):
    classifier.save(tmp_path / "quality.safetensors")
    text = _texts(GOOD_WORDS, 5)[0]
    assert Classifier.open(tmp_path / "quality.safetensors").score(text) == classifier.score(text)


def test_a_threshold_drops_what_scores_less_and_says_the_score(classifier, tmp_path):
    classifier.save(tmp_path / "quality.safetensors")
    cleaner = Cleaner(["quality"], classifier=tmp_path / "quality.safetensors", threshold=0.5)
    assert cleaner(_texts(GOOD_WORDS, 6)[0]).text is not None
    dropped = cleaner(_texts(PILE_WORDS, 6)[0])
    assert dropped.reason == "quality.score"
    assert dropped.detail.endswith("< 0.5")


@pytest.mark.parametrize("score", [0.1, 0.5, 0.9])
def test_without_a_threshold_texts_are_kept_as_often_as_by_gpt3s_rule(score, monkeypatch):
    fixed = Classifier(np.zeros(8, np.float32), float(np.log(score / (1 - score))))
    texts = [f"text {i}" for i in range(4000)]
    kept = [not quality(text, fixed).rule for text in texts]
    # P(Lomax(9) > 1 - score) = (2 - score) ** -9
    expected = (2 - score) ** -9
    deviation = (expected * (1 - expected) / len(texts)) ** 0.5
    assert abs(np.mean(kept) - expected) < 4 * deviation + 1e-9
    assert kept == [not quality(text, fixed).rule for text in texts]


def test_the_step_is_refused_without_a_classifier_and_with_another_file(tmp_path):
    with pytest.raises(InputError, match="needs a classifier"):
        Cleaner(["quality"])
    (tmp_path / "other").write_text("{}")
    with pytest.raises(InputError, match="no quality classifier"):
        Classifier.open(tmp_path / "other")
    with pytest.raises(InputError, match="10 good texts"):
        train_classifier(["one"], ["two"])
