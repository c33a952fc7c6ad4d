"""Sizes of a layout, and how the parts of a tensor make up the whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import InputError
from fourstage.parallel.placement import Box
from fourstage.parallel.sizes import Sizes, check_optimiser, check_sizes, sizes_for
from fourstage.recipe import Parallel
from fourstage.training.tensorfiles import StoredTensors, save_tensors
from parallel_cases import CONFIG

SIZE = st.none() | st.integers(1, 4)


@given(SIZE, SIZE, SIZE, st.integers(1, 16), st.booleans())
def test_sizes_are_those_asked_for_and_use_every_process(replicate, shard, tensor, processes, fits):
    asked = Parallel(replicate=replicate, shard=shard, tensor=tensor)
    try:
        sizes, rule = sizes_for(asked, processes, fits)
    except InputError as error:
        assert "torchrun --nproc-per-node" in str(error)
        return
    assert sizes.processes == processes
    given_sizes = {name: size for name, size in asked.model_dump().items() if size}
    assert all(getattr(sizes, name) == size for name, size in given_sizes.items())
    assert bool(rule) == (processes > (replicate or 1) * (shard or 1) * (tensor or 1))


@pytest.mark.parametrize(
    ("asked", "processes", "fits", "expected"),
    [
        ({}, 8, True, Sizes(replicate=8)),
        ({}, 8, False, Sizes(shard=8)),
        ({"tensor": 2}, 8, False, Sizes(shard=4, tensor=2)),
        ({"replicate": 2}, 8, True, Sizes(replicate=2, shard=4)),
        ({"shard": 2}, 8, False, Sizes(replicate=4, shard=2)),
        ({"tensor": 2, "sequence": True}, 2, True, Sizes(tensor=2, sequence=True)),
    ],
)
def test_what_is_left_out_is_derived(asked, processes, fits, expected):
    assert sizes_for(Parallel(**asked), processes, fits)[0] == expected


@pytest.mark.parametrize(
    ("asked", "processes", "words"),
    [
        ({"shard": 8}, 1, "parallel.shard=8 makes 8 processes and there is 1"),
        ({"shard": 3}, 4, "parallel.shard=3 makes 3 processes and there are 4"),
        ({"replicate": 1, "shard": 2}, 4, "parallel.replicate=1 x parallel.shard=2 makes 2"),
        ({"sequence": True}, 2, "parallel.sequence=true"),
    ],
)
def test_sizes_that_do_not_fit_the_processes_are_refused(asked, processes, words):
    with pytest.raises(InputError, match=words):
        sizes_for(Parallel(**asked), processes)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"heads": 4, "kv_heads": 1}, "model.kv_heads=1 is no multiple of parallel.tensor=2"),
        ({"mlp_width": 49}, "model.mlp_width=49 .* write parallel.tensor=1"),
        ({"experts": 4}, "does not share out model.experts: write parallel.shard=2"),
    ],
)
def test_a_model_that_cannot_be_shared_is_refused_by_the_size_that_is_wrong(changed, words):
    config = dataclasses.replace(CONFIG, **changed)
    check_sizes(Sizes(shard=2), config)
    with pytest.raises(InputError, match=words):
        check_sizes(Sizes(tensor=2), config)


def test_an_optimiser_of_whole_rows_is_refused_where_they_are_cut():
    check_optimiser(Sizes(shard=2), "sft", "adamw8bit")
    check_optimiser(Sizes(tensor=2), "sft", "muon")
    with pytest.raises(InputError, match=r"sft.optimiser=adamw8bit .* parallel.shard=2"):
        check_optimiser(Sizes(tensor=2), "sft", "adamw8bit")


@given(st.data())
def test_any_part_of_a_tensor_is_read_from_whatever_parts_it_was_written_in(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple))
    whole = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    cuts = sorted(data.draw(st.sets(st.integers(1, 5), max_size=3)) & set(range(1, shape[axis])))
    folder, files = tmp_path_factory.mktemp("parts"), []
    for start, end in zip([0, *cuts], [*cuts, shape[axis]], strict=True):
        offset = tuple(start if place == axis else 0 for place in range(len(shape)))
        size = tuple(end - start if place == axis else n for place, n in enumerate(shape))
        box = Box(shape, offset, size)
        save_tensors(folder / f"{start}.safetensors", {"weight": whole[box.slices].clone()})
        files.append((folder / f"{start}.safetensors", {"weight": box}))
    stored = StoredTensors(files)
    starts = [data.draw(st.integers(0, n)) for n in shape]
    sizes = [data.draw(st.integers(0, n - start)) for n, start in zip(shape, starts, strict=True)]
    wanted = Box(shape, tuple(starts), tuple(sizes))
    assert torch.equal(stored.part("weight", wanted), whole[wanted.slices])
    assert torch.equal(stored["weight"], whole) and stored.shape("weight") == shape
