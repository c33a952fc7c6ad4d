"""What a stage computes with on a CPU: chosen once, kept, and followed by the weights' bits."""

import pytest
import torch

from fourstage import kernels
from fourstage.kernels import library
from fourstage.recipe.schema import Compute
from fourstage.stages.computing import settle_kernels, settle_workers
from fourstage.training.fitting import Measured

CPU = torch.device("cpu")
with_kernels = pytest.mark.skipif(library.load() is None, reason="this machine has no C compiler")


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    kernels.use(True)


def settled(asked: str, found: dict | None = None) -> tuple[dict, list[str]]:
    """What run.json holds afterwards, and what was said."""
    measured, said = Measured(found), []
    settle_kernels(Compute(kernels=asked), CPU, measured, said.append)
    return measured.found, said


@with_kernels
def test_kernels_are_taken_kept_and_switched_off_by_one_key():
    found, said = settled("auto")
    assert (found["kernels"]["taken"], said, kernels.usable()) == (True, [], True)
    found, said = settled("off", found)
    assert (found["kernels"]["taken"], said, kernels.usable()) == (False, [], False)


@with_kernels
def test_a_stage_that_began_without_kernels_ends_without_them():
    settled("auto", {"kernels": {"asked": "auto", "taken": False}})
    assert not kernels.usable()


@pytest.mark.parametrize("began", [None, {"kernels": {"asked": "auto", "taken": True}}])
def test_a_machine_without_a_compiler_says_so_once_and_what_it_means(monkeypatch, began):
    monkeypatch.setattr(library, "load", lambda: None)
    monkeypatch.setattr(library, "why_not", lambda: "no C compiler was found")
    found, said = settled("auto", began)
    assert not kernels.usable()
    assert len(said) == 1
    assert "no C compiler was found" in said[0]
    assert ("last digits differ" in said[0]) == bool(began)
    assert found["kernels"]["taken"] == bool(began)


def test_no_kernels_are_looked_for_where_a_device_has_its_own(monkeypatch):
    monkeypatch.setattr(library, "why_not", lambda: pytest.fail("compiled for nothing"))
    settle_kernels(Compute(), torch.device("cuda"), Measured(), print)


def test_workers_are_one_a_thread_and_stay_what_they_were(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    measured = Measured()
    assert settle_workers(Compute(), CPU, measured, 1000) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert settle_workers(Compute(), CPU, measured, 1000) == 3
    assert settle_workers(Compute(workers=2), CPU, measured, 1000) == 2
    assert settle_workers(Compute(), torch.device("cuda"), measured, 1000) == 1


def test_gradients_of_all_workers_take_a_small_part_of_the_memory(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("fourstage.stages.computing.free_bytes", lambda device: 32e9)
    assert settle_workers(Compute(), CPU, Measured(), 250_000_000) == 4
    assert settle_workers(Compute(), CPU, Measured(), 2_000_000_000) == 1
