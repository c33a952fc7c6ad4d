"""Stores and sources: what was written comes back, and a step is a function of (seed, step)."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.batch import Example
from fourstage.data.sources import DocumentSource, EndlessStream, ExampleSource, PairSource
from fourstage.data.store import Store, write_store
from fourstage.errors import InputError

rows = st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=30), min_size=1, max_size=20)
quick = settings(max_examples=30, deadline=None)


def _store(tmp_path_factory, tokens: list[list[int]], **more) -> Store:
    return write_store(tmp_path_factory.mktemp("stores") / "store", tokens, **more)


@quick
@given(rows, st.sampled_from([1000, 2**16, 2**17]))
def test_a_store_gives_back_what_was_written(tmp_path_factory, tokens, vocab_size) -> None:
    store = _store(tmp_path_factory, tokens, vocab_size=vocab_size)
    assert [example.tokens.tolist() for example in Store.open(store.folder)] == tokens
    assert store.lengths.tolist() == [len(row) for row in tokens]
    assert store.tokens_total == sum(map(len, tokens)) and store.intact()
    assert store[0].loss_mask is None and store.row(0) == {}


def test_masks_and_rows_come_back(tmp_path) -> None:
    examples = [
        Example(np.arange(4), np.array([0, 0, 1, 1], bool)),
        Example(np.arange(3), np.array([0, 1, 0], bool)),
    ]
    extra = [{"text": "甲"}, {}]
    store = write_store(tmp_path / "s", examples, extra, vocab_size=10, masked=True)
    assert [e.loss_mask.tolist() for e in store] == [e.loss_mask.tolist() for e in examples]
    assert [store.row(0), store.row(1)] == extra
    assert store.trained_total() == 3


def test_equal_stores_have_equal_hashes_wherever_they_lie(tmp_path) -> None:
    first, second = (write_store(tmp_path / name, [[1, 2], [3]]) for name in ("a", "b"))
    third = write_store(tmp_path / "c", [[1, 2], [4]])
    assert first.hash == second.hash != third.hash


def test_a_changed_file_is_noticed(tmp_path) -> None:
    store = write_store(tmp_path / "s", [[1, 2], [3]], vocab_size=10)
    (tmp_path / "s" / "tokens.bin").write_bytes(b"\1\0\2\0\4\0")
    assert not store.intact()


def test_a_store_that_fails_half_way_leaves_the_old_one(tmp_path) -> None:
    write_store(tmp_path / "s", [[1, 2]])
    with pytest.raises(ValueError, match="does not fit"):
        write_store(tmp_path / "s", [[70_000]], vocab_size=10)
    assert Store.open(tmp_path / "s")[0].tokens.tolist() == [1, 2]
    with pytest.raises(InputError, match="no prepared data"):
        Store.open(tmp_path / "other")


def _transitions(batch) -> list[tuple[int, int]]:
    return list(zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True))


@quick
@given(rows, st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_pieces_cover_every_transition_once_an_epoch(
    tmp_path_factory, tokens, batch_tokens, context, seed
) -> None:
    # Tokens are numbered, so that a transition names its place.
    starts = np.cumsum([0, *map(len, tokens)])
    numbered = [list(range(a, b)) for a, b in pairwise(starts)]
    wanted = [(i, i + 1) for row in numbered for i in row[:-1]]
    if not wanted:
        return
    source = DocumentSource(_store(tmp_path_factory, numbered), batch_tokens, seed, context)
    epochs = 3
    steps = -(-epochs * len(wanted) // batch_tokens)
    stream = [t for step in range(steps + 1) for t in _transitions(source.batch(step))]
    for epoch in range(epochs):
        part = stream[epoch * len(wanted) : (epoch + 1) * len(wanted)]
        assert sorted(part) == wanted
    assert source.cells_per_epoch == len(wanted)
    assert all(max(source.batch(s).lengths) <= context for s in range(steps))


@quick
@given(st.integers(1, 30), st.integers(1, 50), st.integers(0, 9), st.integers(0, 200))
def test_a_step_does_not_depend_on_what_was_asked_before(pieces, cells, seed, step) -> None:
    sizes = np.arange(1, pieces + 1)
    fresh, used = (EndlessStream(sizes, cells, seed) for _ in range(2))
    for other in (step + 7, 0, step // 2):
        used.at(other)
    assert fresh.at(step) == used.at(step)


def test_steps_hold_about_the_cells_asked_for() -> None:
    stream = EndlessStream(np.full(1000, 7), 100, 0)
    cells = [7 * len(stream.at(step)) for step in range(200)]
    assert max(cells) <= 105 and min(cells) >= 98


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    stream = EndlessStream(np.ones(50, int), 50, 0)
    assert sorted(stream.at(0)) == sorted(stream.at(1)) == list(range(50))
    assert stream.at(0) != stream.at(1)
    assert stream.at(0) != EndlessStream(np.ones(50, int), 50, 1).at(0)


def test_examples_are_never_cut_and_keep_their_masks(tmp_path) -> None:
    examples = [
        Example(np.arange(10 * n, 10 * n + 2 + n), np.arange(2 + n) == 1 + n) for n in range(8)
    ]
    store = write_store(tmp_path / "s", examples, masked=True)
    source = ExampleSource(store, 4, seed=0)
    seen = Counter()
    for step in range(source.steps_per_epoch):
        batch = source.batch(step)
        seen.update(batch.lengths)
        assert float(batch.streams["loss_weights"].sum()) == len(batch.lengths)
    assert set(seen) == set(range(1, 9))


def test_pairs_stay_together_chosen_first(tmp_path) -> None:
    mask = np.array([False, True, False])
    examples = [Example(np.array([pair, side, 9]), mask) for pair in range(5) for side in (0, 1)]
    extra = [{"margin": pair / 2} if side == 0 else {} for pair in range(5) for side in (0, 1)]
    store = write_store(tmp_path / "s", examples, extra, masked=True)
    source = PairSource(store, pairs_per_step=2, seed=3, margins=True)
    seen = []
    for step in range(5):
        batch = source.batch(step)
        rows = batch.tokens.reshape(-1, 3)
        assert batch.documents["group"].tolist() == [0, 0, 1, 1]
        assert rows[0::2, 0].tolist() == rows[1::2, 0].tolist()
        assert rows[:, 1].tolist() == [0, 1, 0, 1]
        assert (batch.documents["margins"] == rows[:, 0] / 2).all()
        seen += rows[0::2, 0].tolist()
    assert Counter(seen) == Counter({pair: 2 for pair in range(5)})


def test_nothing_to_train_on_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="empty"):
        DocumentSource(write_store(tmp_path / "s", []), 10, 0, 10)


@quick
@given(rows, st.integers(8, 40), st.integers(2, 12), st.data())
def test_with_overlap_a_transition_is_trained_once_and_read_behind_its_context(
    tmp_path_factory, tokens, batch_tokens, context, data
) -> None:
    overlap = data.draw(st.integers(0, min(context, batch_tokens) - 1))
    starts = np.cumsum([0, *map(len, tokens)])
    numbered = [list(range(a, b)) for a, b in pairwise(starts)]
    wanted = [i for row in numbered for i in row[:-1]]
    if not wanted:
        return
    store = _store(tmp_path_factory, numbered)
    source = DocumentSource(store, batch_tokens, 0, context, overlap)
    first = {row[0] for row in numbered if row}
    trained: list[int] = []
    for step in range(source.steps_per_epoch + 1):
        batch = source.batch(step)
        weights = batch.streams["loss_weights"]
        at = 0
        for length in batch.lengths:
            piece = batch.tokens[at : at + length].tolist()
            context_only = int((weights[at : at + length] == 0).sum())
            assert length <= context and context_only == (0 if piece[0] in first else overlap)
            assert not weights[at : at + context_only].any()
            trained += piece[context_only:]
            at += length
    assert source.cells_per_epoch == len(wanted)
    assert sorted(trained[: len(wanted)]) == wanted


def test_an_overlap_as_long_as_the_context_is_refused(tmp_path) -> None:
    store = write_store(tmp_path / "s", [[1, 2, 3]])
    with pytest.raises(InputError, match="from 0 to 7"):
        DocumentSource(store, 100, 0, 8, overlap=8)


def test_slices_of_a_stream_meet_without_gap() -> None:
    stream = EndlessStream(np.array([5, 1, 7, 3]), 4, 0)
    whole = stream.slices(0, 160)
    order = [
        (p, c)
        for p, s, t in zip(whole.pieces, whole.skip, whole.take, strict=True)
        for c in range(s, s + t)
    ]
    for a, b in ((0, 1), (3, 20), (15, 17), (16, 32), (31, 160)):
        part = stream.slices(a, b)
        cells = [
            (p, c)
            for p, s, t in zip(part.pieces, part.skip, part.take, strict=True)
            for c in range(s, s + t)
        ]
        assert cells == order[a:b] and (part.take > 0).all()
