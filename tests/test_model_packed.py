"""Attention over documents back to back: flex and flash beside the buckets."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from fourstage.model.layout import Layout
from fourstage.model.packed import Scores, attend_documents, flash_arguments, flex, tiles_of

SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.01])
LENGTHS = [[5, 3, 9], [130, 1, 200, 77, 50], [256, 128], [1] * 130]


def heads(cells: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
    draw = torch.Generator().manual_seed(cells)
    shapes = [(cells, 4, 16), (cells, 2, 16), (cells, 2, 16)]
    return [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)} documents")
@pytest.mark.parametrize("window", [0, 1, 7, 150])
def test_flex_attention_gives_what_the_buckets_give(lengths, window):
    layout = Layout(lengths)
    q, k, v = heads(layout.cells)
    tiles = tiles_of(layout, window)
    for scores in (Scores(window), Scores(window, 0.3, 5.0), Scores(window, slopes=SLOPES)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = flex(q, k, v, tiles, scores)
        torch.testing.assert_close(found, attend_documents(q, k, v, layout, scores))


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)} documents")
@pytest.mark.parametrize("window", [0, 7, 150])
def test_tiles_are_those_of_the_mask_pair_by_pair(lengths, window):
    layout = Layout(lengths)
    tiles, cells = tiles_of(layout, window), layout.cells
    wanted = create_block_mask(tiles.mask_mod, None, None, cells, cells, device="cpu")
    assert torch.equal(tiles.to_dense(), wanted.to_dense())
    assert torch.equal(tiles.full_kv_num_blocks, wanted.full_kv_num_blocks)
    assert torch.equal(tiles.full_q_num_blocks, wanted.full_q_num_blocks)


def test_flash_attention_is_told_where_documents_start_and_how_far_a_cell_sees():
    told = flash_arguments(Layout([5, 3, 9]), Scores(window=4, scale=0.5), shared=True)
    assert told["cu_seq_q"].tolist() == told["cu_seq_k"].tolist() == [0, 5, 8, 17]
    assert told["cu_seq_q"].dtype == torch.int32
    assert told["max_q"] == told["max_k"] == 16 and told["scale"] == 0.5
    # Cells before the own one and behind it.
    assert told["window_size"] == (3, 0)
    assert flash_arguments(Layout([5]), Scores(), shared=False)["window_size"] == (-1, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [0, 7, 150])
def test_flash_attention_gives_what_the_buckets_give(window):
    layout, scores = Layout(LENGTHS[1], "cuda"), Scores(window)
    given = [each.requires_grad_() for each in heads(layout.cells, "cuda", torch.bfloat16)]
    finer = [each.detach().float().requires_grad_() for each in given]
    ours = attend_documents(*given, layout, scores)
    theirs = attend_documents(*finer, layout, scores)
    torch.testing.assert_close(ours.float(), theirs, atol=2e-2, rtol=2e-2)
    found = torch.autograd.grad(ours.float().square().sum(), given)
    wanted = torch.autograd.grad(theirs.square().sum(), finer)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.float(), other, atol=5e-2, rtol=5e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scores", [Scores(softcap=5.0), Scores(7, slopes=SLOPES)])
def test_compiled_flex_attention_gives_what_the_buckets_give(scores):
    layout = Layout(LENGTHS[1], "cuda")
    if scores.slopes is not None:
        scores = Scores(scores.window, slopes=SLOPES.cuda())
    layout.tiles[scores.window] = tiles_of(layout, scores.window)
    given = [each.requires_grad_() for each in heads(layout.cells, "cuda")]
    ours = torch.compile(attend_documents)(*given, layout, scores)
    theirs = attend_documents(*given, layout, scores)
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)
    found, wanted = (torch.autograd.grad(each.square().sum(), given) for each in (ours, theirs))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=5e-2, rtol=5e-2)
