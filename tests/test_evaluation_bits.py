"""Bits per byte: each document alone, with its own end, against a loop written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evaluation_support import model, tokenizer
from fourstage.data.batch import Batch, Example
from fourstage.evaluation.bits import bits_per_byte, windows, within
from fourstage.worlds import calibration as world


def documents(count: int = 12) -> list[dict]:
    found = [world.document(1, "validation", index) for index in range(count)]
    return [
        {"text": d.text, "kind": d.kind, "bits": d.bits, "determined": d.determined} for d in found
    ]


def nll(transformer, tokens: list[int]) -> list[float]:
    batch = Batch.language([Example(np.array(tokens))])
    with torch.no_grad():
        logits = transformer.logits(transformer(batch.tokens, batch.layout))
    logprobs = logits.log_softmax(-1)
    return [-float(logprobs[i, token]) for i, token in enumerate(tokens[1:])]


def test_bits_per_byte_is_that_of_each_document_alone():
    rows, transformer = documents(), model()
    numbers = bits_per_byte(transformer, tokenizer(), rows)
    bits = size = 0.0
    for row in rows:
        ids = tokenizer().encode(row["text"])
        tokens = [tokenizer().end_of_text, *ids, tokenizer().end_of_text]
        bits += sum(nll(transformer, tokens)) / math.log(2)
        size += len(row["text"].encode())
    assert numbers.metrics["validation_bits_per_byte"] == pytest.approx(bits / size, rel=1e-5)


def test_entropy_is_the_documents_own_probability_over_the_same_bytes():
    rows = documents()
    numbers = bits_per_byte(model(), tokenizer(), rows)
    expected = sum(row["bits"] for row in rows) / sum(len(row["text"].encode()) for row in rows)
    assert numbers.metrics["entropy_bits_per_byte"] == pytest.approx(expected)
    low, high = numbers.intervals["entropy_bits_per_byte"]
    assert low <= expected <= high


def test_every_kind_gets_its_own_numbers():
    rows = documents(40)
    metrics = bits_per_byte(model(), tokenizer(), rows).metrics
    for kind in {row["kind"] for row in rows}:
        assert f"validation_bits_per_byte/{kind}" in metrics
        assert f"entropy_bits_per_byte/{kind}" in metrics


def test_a_long_document_counts_every_token_once():
    tokens = np.arange(1, 100)
    for context in (8, 9, 16, 98, 200):
        counted = []
        for window in windows(0, tokens, context):
            assert len(window.example.tokens) <= context + 1
            counted += window.example.tokens[1:][window.first :].tolist()
        assert counted == tokens[1:].tolist()


def test_a_document_longer_than_the_context_is_measured():
    text = " ".join(world.document(0, "validation", index).text for index in range(8))
    numbers = bits_per_byte(model(context=64), tokenizer(), [{"text": text}])
    assert 0 < numbers.metrics["validation_bits_per_byte"] < 30


def test_determined_accuracy_is_one_for_a_model_that_foresees_everything(monkeypatch):
    from fourstage.evaluation import bits

    def oracle(transformer, batch):
        return torch.zeros(batch.cells), torch.ones(batch.cells, dtype=torch.bool)

    monkeypatch.setattr(bits, "greedy_hits", oracle)
    metrics = bits_per_byte(model(), tokenizer(), documents(40)).metrics
    assert metrics["determined_accuracy"] == 1.0
    assert metrics["validation_bits_per_byte"] == 0.0


def test_only_pieces_wholly_inside_a_span_are_determined():
    pieces = ["Ann", " the", " bea", "r ran", "."]
    text = "".join(pieces)
    assert within(text, pieces, [(8, 12)]) == [False, False, True, False, False]
    assert within(text, pieces, [(8, 16)]) == [False, False, True, True, False]
    assert within(text, pieces, []) == [False] * 5


def test_spans_over_pieces_of_another_text_are_refused():
    with pytest.raises(ValueError, match="spans cannot be placed"):
        within("abc", ["a", "b"], [])
