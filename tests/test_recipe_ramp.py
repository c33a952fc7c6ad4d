"""A batch that grows: every piece is read once, in the order it has without, by a formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.drawing import text_source
from fourstage.data.mixed import MixedSource, cells_by_source
from fourstage.data.mixture import shares
from fourstage.data.sources import DocumentSource, EndlessStream
from fourstage.data.store import write_store
from fourstage.errors import InputError
from fourstage.planning import resolve
from fourstage.recipe import recipe_from
from fourstage.recipe.ramp import BatchRamp, StepCells

quick = settings(max_examples=60, deadline=None)
batches = st.integers(1, 400)
ramps = st.builds(BatchRamp, from_tokens=st.integers(1, 400), over_tokens=st.integers(1, 5000))


@quick
@given(batches, ramps)
def test_steps_grow_from_the_first_to_the_whole_batch_and_stay_there(batch, ramp) -> None:
    steps = StepCells(batch, ramp)
    sizes = np.diff([steps.begin(step) for step in range(300)])
    assert sizes[0] == steps.least == min(batch, ramp.from_tokens)
    assert bool((np.diff(sizes) >= 0).all()) and sizes.max() <= batch
    for step, size in enumerate(sizes):
        read = steps.begin(step)
        if read >= ramp.over_tokens:
            assert size == batch
        else:
            linear = steps.least + (batch - steps.least) * read / ramp.over_tokens
            assert linear - 1 < size <= linear


@quick
@given(batches, ramps, st.integers(1, 20_000))
def test_steps_for_tokens_are_the_fewest_that_read_them(batch, ramp, tokens) -> None:
    for steps in (StepCells(batch, ramp), StepCells(batch)):
        count = steps.steps_for(tokens)
        assert steps.begin(count - 1) < tokens <= steps.begin(count)
    assert StepCells(batch).steps_for(tokens) == -(-tokens // batch)


@quick
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(30, 200),
    st.integers(30, 200),
    st.integers(1, 2000),
    st.integers(0, 5),
)
def test_every_piece_is_read_once_and_in_the_order_without_a_ramp(sizes, a, b, over, seed) -> None:
    ramp = BatchRamp(from_tokens=min(a, b), over_tokens=over)
    grown = EndlessStream(np.array(sizes), StepCells(max(a, b), ramp), seed)
    plain = EndlessStream(np.array(sizes), max(a, b), seed)
    of_grown = [piece for step in range(60) for piece in grown.at(step)]
    of_plain = [piece for step in range(60) for piece in plain.at(step)]
    assert of_grown == of_plain[: len(of_grown)]
    assert sorted(of_grown[: len(sizes)]) == list(range(len(sizes)))
    # Nothing was walked to: another step alone gives the same.
    again = EndlessStream(np.array(sizes), StepCells(max(a, b), ramp), seed)
    assert again.at(17) == grown.at(17)


def test_a_mixture_is_drawn_in_the_same_order_with_a_ramp(tmp_path) -> None:
    rows = [[n] * (5 + n % 20) for n in range(1, 200)]
    store = write_store(tmp_path / "store", rows)
    ids, names = np.arange(len(rows)) % 2, ["a", "b"]
    mix = shares(cells_by_source(store.lengths, ids, names), {"a": 3.0, "b": 1.0})
    steps = StepCells(120, BatchRamp(from_tokens=40, over_tokens=1000))
    whole = 40 * 120
    count = steps.steps_for(whole)
    grown = MixedSource(store, ids, names, mix, steps, 0, 24, count)
    plain = MixedSource(store, ids, names, mix, 120, 0, 24, 40)
    first = [piece for step in range(20) for piece in grown.at(step)]
    others = [piece for step in range(40) for piece in plain.at(step)]
    assert len(first) > 60 and first == others[: len(first)]
    assert 20 < grown.batch(0).cells < 80 and 90 < grown.batch(count - 2).cells < 150


def test_the_batches_of_documents_grow(tmp_path) -> None:
    store = write_store(tmp_path / "store", [[1] * 9 for _ in range(400)])
    source = DocumentSource(store, StepCells(160, BatchRamp(from_tokens=32, over_tokens=800)), 0, 8)
    sizes = [source.batch(step).cells for step in range(16)]
    assert sizes[0] == 32 and sizes[-1] == 160 and sizes == sorted(sizes)
    assert source.steps_per_epoch > DocumentSource(store, 160, 0, 8).steps_per_epoch


def ramped(**ramp) -> dict:
    pretrain = {"batch_tokens": 4096, "tokens": 1_000_000, "batch_ramp": ramp}
    return {"data": {"pretrain": "world"}, "pretrain": pretrain}


def test_a_recipe_with_a_ramp_has_the_steps_that_read_its_tokens() -> None:
    recipe, _ = resolve(recipe_from(ramped(from_tokens=512, over_tokens=200_000)))
    pretrain = recipe.pretrain
    without, _ = resolve(recipe_from({**ramped(), "pretrain": {"batch_tokens": 4096,
                                                               "tokens": 1_000_000}}))  # fmt: skip
    assert pretrain.steps > without.pretrain.steps == 245
    assert 1_000_000 <= pretrain.drawn_tokens() < 1_000_000 + 4096
    assert recipe_from(recipe.to_dict()).pretrain == pretrain
    assert pretrain.step_cells().span(0) == (0, 512)


@pytest.mark.parametrize("start, said", [(100, "no start of a ramp"), (5000, "more than batch")])
def test_a_ramp_that_starts_too_low_or_too_high_is_refused(start, said) -> None:
    with pytest.raises(InputError, match=said):
        resolve(recipe_from(ramped(from_tokens=start, over_tokens=10_000)))


def test_a_ramp_below_the_context_is_refused_where_texts_would_be_cut(tmp_path) -> None:
    store = write_store(tmp_path / "store", [[1] * 90 for _ in range(10)])
    recipe = recipe_from({})
    with pytest.raises(InputError, match="write 64 or more"):
        text_source(recipe, store, StepCells(99, BatchRamp(from_tokens=9, over_tokens=99)), 64)
