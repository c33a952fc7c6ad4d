"""What the key-value cache promises."""

from __future__ import annotations

import pytest
import torch

from fourstage.model.cache import KVCache
from fourstage.model.layout import Layout
from tiny_models import logits_of, tiny_model


def filled(lengths: list[int], capacity: int = 20):
    model = tiny_model()
    documents = [[(i * 11 + j) % 60 for j in range(n)] for i, n in enumerate(lengths)]
    cache = KVCache(model.config, len(lengths), capacity)
    flat = torch.tensor([token for document in documents for token in document])
    with torch.no_grad():
        model(flat, Layout(lengths), cache=cache)
    return model, documents, cache


def test_rows_of_different_length_decode_as_if_read_whole():
    model, documents, cache = filled([3, 9, 1, 6])
    for new in ([1, 2, 3, 4], [5, 6, 7, 8]):
        with torch.no_grad():
            logits = model.logits(model.decode(torch.tensor(new), cache))
        for row, token in enumerate(new):
            documents[row].append(token)
            assert torch.allclose(logits[row], logits_of(model, documents[row])[-1], atol=1e-4)


def test_kept_rows_go_on_as_if_the_others_had_never_been():
    model, documents, cache = filled([3, 9, 1, 6, 4])
    cache.keep(torch.tensor([0, 4, 2]))
    assert cache.batch == 3 and cache.lengths.tolist() == [3, 4, 1] and cache.longest == 4
    with torch.no_grad():
        logits = model.logits(model.decode(torch.tensor([7, 8, 9]), cache))
    for row, (document, token) in enumerate(zip((0, 4, 2), (7, 8, 9), strict=True)):
        expected = logits_of(model, [*documents[document], token])[-1]
        assert torch.allclose(logits[row], expected, atol=1e-4)


def test_a_full_cache_says_so():
    model, _, cache = filled([3, 4], capacity=4)
    with pytest.raises(ValueError, match="capacity is 4"):
        model.decode(torch.tensor([1, 1]), cache)
    with pytest.raises(ValueError, match="do not fit"):
        filled([3, 5], capacity=4)
