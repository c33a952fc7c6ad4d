"""What a stage computes with on a CPU: chosen once, kept, and followed by the weights' bits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fourstage import kernels
from fourstage.files import write_json
from fourstage.kernels import library
from fourstage.parallel.group import Group
from fourstage.pipeline.runner import Runner
from fourstage.recipe.schema import Compute
from fourstage.stages.computing import settle_kernels, settle_workers
from fourstage.training.fitting import Measured
from pipeline_support import tiny

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
    assert settle_workers(Compute(), CPU, measured, 1000, Group()) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert settle_workers(Compute(), CPU, measured, 1000, Group()) == 3
    assert settle_workers(Compute(workers=2), CPU, measured, 1000, Group()) == 2
    assert settle_workers(Compute(), torch.device("cuda"), measured, 1000, Group()) == 1


def test_gradients_of_all_workers_take_a_small_part_of_the_memory(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("fourstage.stages.computing.free_bytes", lambda device: 32e9)
    assert settle_workers(Compute(), CPU, Measured(), 250_000_000, Group()) == 4
    assert settle_workers(Compute(), CPU, Measured(), 2_000_000_000, Group()) == 1


class _Two(Group):
    """Two processes, of which the other has room for three."""

    def lowest(self, number):
        return min(number, 3)


def test_processes_have_as_many_workers_as_the_one_with_least_room_and_others_begin_anew(
    monkeypatch,
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    measured, two = Measured(), _Two(0, 2)
    assert settle_workers(Compute(), CPU, measured, 1000, two) == 3
    assert settle_workers(Compute(), CPU, measured, 1000, Group()) == 8
    earlier = Measured({"workers": {"asked": None, "taken": 5}})
    assert settle_workers(Compute(), CPU, earlier, 1000, Group()) == 5


@pytest.mark.parametrize("processes", [1, 4])
def test_threads_are_those_the_run_began_with_where_as_many_processes_go_on(
    tmp_path, monkeypatch, processes
):
    found = {"format": 1, "stages": {}, "device": "cpu", "threads": 3, "processes": processes}
    write_json(tmp_path / "run.json", found)
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    Runner(tiny(), tmp_path, Group(), print)._keep_threads()
    assert taken == ([3] if processes == 1 else [])


def test_comparisons_are_drawn_with_what_the_recipe_says_whatever_ran_before(tmp_path):
    found = []

    def prepare(*_):
        found.append(kernels.usable())
        raise InterruptedError

    runner: Any = Runner(tiny("compute.kernels=off"), tmp_path, Group(), print)
    runner.datasets = SimpleNamespace(can_prepare=lambda stage: False, prepare=prepare)
    kernels.use(True)
    with pytest.raises(InterruptedError):
        runner._work("reward")
    assert found == [False]
