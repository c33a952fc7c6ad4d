"""Replicas in threads: shared weights, own gradients, the sum that one module would have."""

import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fourstage.data.packing import balanced
from fourstage.parallel import replicas as threaded
from fourstage.parallel.replicas import Replicas, sharing_weights


def small() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11))
    module[3].weight = module[0].weight
    return module


def losses(module, tokens):
    loss = module(tokens).logsumexp(-1).sum()
    loss.backward()
    return float(loss)


def test_copies_share_memory_and_ties():
    module = small()
    twin = sharing_weights(module)
    assert twin[3].weight is twin[0].weight
    with torch.no_grad():
        module[1].weight.add_(1.0)
    assert torch.equal(twin[1].weight, module[1].weight)
    assert twin[1].weight.data_ptr() == module[1].weight.data_ptr()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_are_those_of_one_module(count):
    tokens = torch.randint(0, 11, (30,), generator=torch.Generator().manual_seed(1))
    alone = small()
    wanted = losses(alone, tokens)
    replicas = Replicas(small(), count)
    found = sum(replicas.each(losses, tokens.split(30 // count)))
    replicas.gather_gradients()
    assert found == pytest.approx(wanted, rel=1e-6)
    for mine, theirs in zip(replicas.modules[0].parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert all(p.grad is None for copy in replicas.modules[1:] for p in copy.parameters())


def test_the_same_bits_every_time():
    tokens = torch.randint(0, 11, (400,), generator=torch.Generator().manual_seed(1))
    seen = []
    for _ in range(5):
        replicas = Replicas(small(), 2)
        replicas.each(losses, tokens.split(200))
        replicas.gather_gradients()
        seen.append(torch.cat([p.grad.flatten() for p in replicas.modules[0].parameters()]))
    assert all(torch.equal(seen[0], other) for other in seen)


def test_fewer_items_than_modules_leave_some_idle():
    replicas = Replicas(small(), 3)
    assert len(replicas.each(losses, [torch.tensor([1])])) == 1


def test_items_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=20)
    replicas = Replicas(small(), 3)
    replicas.each(lambda module, item: meeting.wait(), [0, 1, 2])


def test_an_error_in_a_copy_is_raised_and_the_rest_goes_on():
    replicas = Replicas(small(), 2)
    threads = torch.get_num_threads()

    def fail(module, item):
        if item:
            raise ValueError("the second part")

    with pytest.raises(ValueError, match="the second part"):
        replicas.each(fail, [0, 1])
    assert torch.get_num_threads() == threads
    assert replicas.each(lambda module, item: item, [3, 4]) == [3, 4]


def test_threads_end_with_their_replicas_and_hold_nothing_of_them():
    before = set(threading.enumerate())
    replicas = Replicas(small(), 3)
    replicas.each(losses, torch.arange(9).split(3))
    threads = set(threading.enumerate()) - before
    copies = [weakref.ref(module) for module in replicas.modules]
    del replicas
    gc.collect()
    for thread in threads:
        thread.join(20)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)
    gc.collect()
    assert [copy() for copy in copies] == [None] * 3


def test_no_copy_begins_before_products_have_the_threads_of_one(monkeypatch):
    before, seen = torch.get_num_threads(), []
    start = threaded._Worker.start
    monkeypatch.setattr(
        threaded._Worker,
        "start",
        lambda worker, work: (seen.append(torch.get_num_threads()), start(worker, work)),
    )
    torch.set_num_threads(4)
    try:
        Replicas(small(), 2).each(losses, torch.arange(6).split(3))
        assert seen == [2] and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 8))
def test_balanced_bins_hold_every_item_once_and_differ_by_at_most_one(lengths, parts):
    bins = balanced(lengths, parts)
    assert len(bins) == parts
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    loads = [sum(lengths[item] for item in members) for members in bins]
    assert max(loads) - min(loads) <= max(lengths, default=0)
