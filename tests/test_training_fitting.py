"""A step that does not fit the memory is made to fit it, and remains the same update."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.batch import Batch, Example
from fourstage.errors import MachineError
from fourstage.memory import is_out_of_memory
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.planning.memory import Step, step_memory
from fourstage.training.choices import choices, filled, longest
from fourstage.training.fitting import Measured
from fourstage.training.trainer import Trainer
from memory_support import SHAPE, documents, peak_bytes
from pipeline_support import environment, go, results, tiny
from training_support import (
    CONFIG,
    TinySource,
    same_bits,
    tiny_batch,
    trainer,
    weights_of,
)

FREE = "fourstage.training.fitting.free_bytes"


class Cramped(NextToken):
    """An objective on a machine where a pass over more than `most` cells finds no memory.

    Args:
        from_pass: number of the first pass that is cramped.
    """

    def __init__(self, most: int, from_pass: int = 0):
        self.most, self.from_pass = most, from_pass
        self.passed: list[int] = []
        self.drawn = torch.zeros(())

    def sums(self, module: Any, micro: Batch) -> Any:
        self.passed.append(micro.cells)
        self.drawn = torch.rand(())  # as a module with dropout draws
        if micro.cells > self.most and len(self.passed) > self.from_pass:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().sums(module, micro)


def tried(folder: Path, **changed: Any) -> tuple[Trainer, list[str]]:
    """A trainer whose largest micro-batch is tried, and what it says."""
    said: list[str] = []
    measured = changed.pop("measured", None)
    made = trainer(folder, say=said.append, **changed)
    if measured is not None:
        made.fitting.measured = measured
    return made, said


@pytest.fixture
def scarce():
    """A machine with as much memory as makes a trial worth its while, and no choice hopeless."""
    needs = step_memory(CONFIG, 48, Step()).total
    with mock.patch(FREE, return_value=1.5 * needs):
        yield


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.sampled_from(["auto", "off", "block"]))
def test_each_choice_takes_less_than_the_one_before(asked, whole, recompute):
    found = choices(max(asked, whole), whole, recompute)
    assert found[0].micro_batch_tokens == max(asked, whole)
    assert found[-1].micro_batch_tokens == whole
    assert all(b.takes_less_than(a) for a, b in itertools.pairwise(found))
    ways = {choice.recompute for choice in found}
    assert ways == ({"off", "block"} if recompute == "auto" else {recompute})


@given(st.lists(st.integers(2, 30), min_size=1, max_size=6), st.integers(1, 200), st.booleans())
def test_the_largest_micro_batch_is_as_full_as_documents_fill_it(lengths, cells, paired):
    rows = [Example(np.arange(length)) for length in lengths for _ in range(2)]
    group = [i // 2 for i in range(len(rows))] if paired else None
    batch = Batch.rows(rows, group)
    micro, largest = filled(batch, cells), longest(batch)
    assert micro.cells <= max(cells, largest)
    # What is left holds no further document or pair.
    smallest = min(lengths) * (2 if paired else 1)
    assert micro.cells + smallest > cells
    assert max(micro.lengths) == max(lengths)
    if paired:
        assert all(len(group) == 2 for group in micro.groups())


def test_what_is_no_lack_of_memory_is_not_taken_for_one():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_trial_changes_no_bit_of_what_is_trained(tmp_path, scarce):
    once, _ = tried(tmp_path / "once", micro_batch_tokens=48)
    objective = Cramped(1000)
    again, said = tried(tmp_path / "again", micro_batch_tokens=48, objective=objective)
    with mock.patch(FREE, return_value=1e12):
        once.train()
    again.train()
    # The trial is a pass of its own, over the largest micro-batch there can be.
    assert objective.passed[0] > 40 and not said[:-1]
    assert same_bits(weights_of(once.module), weights_of(again.module))


def test_a_trial_leaves_random_streams_weights_and_gradients_alone(tmp_path, scarce):
    objective = Cramped(24)
    made, _ = tried(tmp_path, micro_batch_tokens=48, objective=objective)
    before, state = weights_of(made.module), torch.get_rng_state()
    made.fitting._settle(tiny_batch(0, 0))
    assert len(objective.passed) == 2
    assert torch.equal(state, torch.get_rng_state())
    assert same_bits(before, weights_of(made.module))
    assert all(parameter.grad is None for parameter in made.module.parameters())


def test_with_memory_to_spare_nothing_is_tried(tmp_path):
    objective = Cramped(1000)
    made, _ = tried(tmp_path, objective=objective, micro_batch_tokens=48, steps=1)
    made.train()
    assert sum(objective.passed) == tiny_batch(0, 0).cells
    assert made.fitting.update.settings.micro_batch_tokens == 48


def test_a_micro_batch_that_does_not_fit_is_halved_and_the_update_is_the_same(tmp_path, scarce):
    whole, _ = tried(tmp_path / "whole", micro_batch_tokens=48, steps=3)
    kept: list[Any] = []
    cramped, said = tried(
        tmp_path / "cramped",
        micro_batch_tokens=48,
        steps=3,
        objective=Cramped(24),
        measured=Measured(keep=lambda found: kept.append(json.loads(json.dumps(found)))),
    )
    with mock.patch(FREE, return_value=1e12):
        whole.train()
    cramped.train()
    for a, b in zip(whole.module.parameters(), cramped.module.parameters(), strict=True):
        # Adam divides by the gradient's own size, which magnifies rounding of tiny gradients.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    assert "going on with micro-batches of 24 tokens" in said[0]
    assert kept[0]["fitting"]["micro_batch_tokens"] == 24


def test_what_fitted_is_kept_before_the_first_step_and_taken_on_resuming(tmp_path, scarce):
    steps_when_kept: list[int] = []
    measured = Measured(keep=lambda found: steps_when_kept.append(first.counts.step))
    first, _ = tried(
        tmp_path, micro_batch_tokens=48, objective=Cramped(24), measured=measured, steps=4
    )
    first.train()
    assert steps_when_kept == [0]
    objective = Cramped(10**6)
    again, _ = tried(
        tmp_path / "again", micro_batch_tokens=48, objective=objective, measured=measured, steps=4
    )
    again.train()
    assert max(objective.passed) <= 24
    assert same_bits(weights_of(first.module), weights_of(again.module))
    asked_anew, _ = tried(
        tmp_path / "anew", micro_batch_tokens=40, objective=Cramped(24), measured=measured, steps=1
    )
    asked_anew.train()
    assert asked_anew.fitting.update.settings.micro_batch_tokens == 20


def test_memory_that_runs_out_in_a_step_repeats_it_with_smaller_micro_batches(tmp_path):
    whole, _ = tried(tmp_path / "whole", micro_batch_tokens=48, steps=6)
    whole.train()
    kept: list[Any] = []
    late, said = tried(
        tmp_path / "late",
        micro_batch_tokens=48,
        steps=6,
        objective=Cramped(24, from_pass=5),
        measured=Measured(keep=kept.append),
    )
    late.train()
    assert late.counts.step == 6 and late.counts.skipped == 0
    assert sum("out of memory in a step" in line for line in said) == 1
    assert kept[-1]["fitting"]["micro_batch_tokens"] == 24
    for a, b in zip(whole.module.parameters(), late.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-5)


def test_a_repeated_step_draws_the_numbers_it_drew_before(tmp_path):
    batch = Batch.language([Example(np.arange(13) % 40)] * 2)
    objective = Cramped(12)
    made, _ = tried(tmp_path, micro_batch_tokens=24, objective=objective)
    torch.manual_seed(0)
    expected = [torch.rand(()) for _ in range(2)][-1]
    torch.manual_seed(0)
    made.fitting(batch, 1e-3)
    # One pass that failed, then one for each document.
    assert objective.passed == [24, 12, 12]
    assert torch.equal(objective.drawn, expected)


def test_a_document_that_does_not_fit_by_itself_ends_the_run_with_its_length(tmp_path):
    made, _ = tried(tmp_path, micro_batch_tokens=48, objective=Cramped(3))
    length = longest(tiny_batch(0, 0))
    with pytest.raises(MachineError, match=f"one document of {length} tokens .*model.context="):
        made.train()


def test_a_machine_without_room_for_the_smallest_choice_is_told_before_it_is_overrun(tmp_path):
    objective = Cramped(10**6)
    made, _ = tried(tmp_path, objective=objective, micro_batch_tokens=48)
    with mock.patch(FREE, return_value=1000.0), pytest.raises(MachineError, match="by itself"):
        made.train()
    assert not objective.passed


def test_nothing_is_tried_or_repeated_where_the_recipe_says_so(tmp_path, scarce):
    objective = Cramped(24)
    made, _ = tried(tmp_path, objective=objective, micro_batch_tokens=48, tune=False)
    with pytest.raises(MachineError, match="micro_batch_tokens=24"):
        made.train()
    assert len(objective.passed) == 1


def test_memory_that_runs_out_while_weights_change_ends_the_run(tmp_path):
    made, _ = tried(tmp_path, micro_batch_tokens=48)

    def fails(learning_rate: float) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made.update.optimiser.step = fails
    with pytest.raises(MachineError, match="while the weights were changed"):
        made.train()


def test_checkpoints_are_written_where_there_is_no_room_for_a_thread(tmp_path):
    made, _ = tried(tmp_path, steps=2)
    with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
        made.train()
    found = made.checkpoints.newest()
    assert found is not None and found.step == 2


def test_another_error_in_a_step_is_left_as_it_is(tmp_path):
    class Broken(NextToken):
        def sums(self, module: Any, micro: Batch) -> Any:
            raise RuntimeError("shapes cannot be multiplied")

    made, _ = tried(tmp_path, objective=Broken())
    with pytest.raises(RuntimeError, match="shapes"):
        made.train()


@pytest.mark.parametrize("recompute", ["block", "auto"])
def test_recomputed_blocks_give_the_same_bits_in_less_memory(tmp_path, recompute):
    """`auto` recomputes where halving the micro-batch three times is not enough."""
    batch = documents(SHAPE, (100,) * 8)

    class One(TinySource):
        def batch(self, step: int) -> Batch:
            return batch

    def made(name: str, way: str) -> Trainer:
        model = Transformer(SHAPE).initialise(0)
        return trainer(tmp_path / name, model, One(), steps=2, recompute=way, clip=0.0)

    kept, again = made("kept", "off"), made("again", recompute)
    # Beside weights and moments, the smallest choice with blocks kept would not fit.
    eighth = step_memory(SHAPE, 100, Step()).total - 4 * SHAPE.parameters()
    whole = step_memory(SHAPE, 100, Step(recompute="block")).total - 4 * SHAPE.parameters()
    free = 1e12 if recompute == "block" else (eighth + whole) / 2 / 0.8
    kept.fitting(batch, 1e-3)
    with mock.patch(FREE, return_value=free):
        again.fitting(batch, 1e-3)
    assert [part.recompute for part in (kept.module, again.module)] == ["none", "block"]
    peaks = [peak_bytes(lambda each=each: each.fitting(batch, 1e-3)) for each in (kept, again)]
    assert peaks[1] < 0.6 * peaks[0]
    if recompute == "block":
        assert same_bits(weights_of(kept.module), weights_of(again.module))


def test_every_copy_in_a_thread_computes_its_blocks_again(tmp_path):
    made = trainer(tmp_path, Transformer(SHAPE).initialise(0), workers=2, recompute="block")
    made.fitting(documents(SHAPE, (100,) * 8), 1e-3)
    copies = made.update.passes.replicas
    assert copies is not None
    assert [model.recompute for model in copies.modules] == ["block", "block"]


LIMITED = """
import resource, sys
from pathlib import Path
import torch
sys.path.insert(0, "tests")
torch.set_num_threads(1)
from memory_support import documents
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.memory import _STATUS, _kilobytes
from fourstage.planning.memory import Memory
from fourstage.training import fitting
from safetensors.torch import save_file
from training_support import TinySource, trainer

config = ModelConfig(2000, 128, 4, 4, 4, 352, 128)
batch = documents(config, (128,) * 64)

class One(TinySource):
    def batch(self, step):
        return batch

model = Transformer(config).initialise(0)
made = trainer(Path(sys.argv[1]), model, One(), steps=1, micro_batch_tokens=8192, say=print)
megabytes, sees = int(sys.argv[2]), sys.argv[3] == "sees"
if megabytes:
    limit = int(_kilobytes(_STATUS, "VmSize")) + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if not sees:
    # An estimate that is too low: what the machine gives decides.
    fitting.step_memory = lambda *_: Memory(0, 0, 0, 200e6, 0)
made.train()
print("taken", made.update.settings.micro_batch_tokens)
save_file(made.module.state_dict(), sys.argv[1] + "/end.safetensors")
"""


def limited(folder: Path, megabytes: int, sees: str) -> tuple[str, dict[str, torch.Tensor]]:
    """What a process says that may take so many megabytes more, and its weights at the end."""
    from safetensors.torch import load_file

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(megabytes), sees],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, load_file(folder / "end.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process's memory are Linux's")
@pytest.mark.parametrize("sees", ["sees", "is surprised"])
def test_a_process_with_little_memory_ends_with_the_same_update(tmp_path, sees):
    """The first learns from its limit what would fit; the second finds out by the trial."""
    told, roomy = limited(tmp_path / "roomy", 0, "sees")
    assert "taken 8192" in told
    told, cramped = limited(tmp_path / "cramped", 300, sees)
    taken = int(told.split("taken ")[1])
    assert 128 <= taken < 8192, told
    assert "going on with micro-batches" in told
    for name, weight in roomy.items():
        torch.testing.assert_close(weight, cramped[name], rtol=1e-4, atol=1e-4)


def test_a_run_records_what_fitted_and_how_much_memory_its_stages_took(tmp_path):
    run = tmp_path / "run"
    go(tiny("pretrain.micro_batch_tokens=300"), run, only="pretrain")
    noted = json.loads((run / "run.json").read_text())["stages"]["pretrain"]["measured"]["fitting"]
    assert noted["micro_batch_tokens"] == 300 and noted["recompute"] == "off"
    took = results(run, "pretrain")
    assert took["peak_memory_bytes"] > 50e6
    assert 0 <= took["memory_bytes"] < took["peak_memory_bytes"]


def test_a_micro_batch_that_does_not_fit_one_process_is_halved_on_all(tmp_path, scarce):
    objective = Cramped(10**6)
    made, said = tried(tmp_path, objective=objective, micro_batch_tokens=48, steps=1)
    elsewhere = iter([True])
    with mock.patch.object(Group, "any", lambda self, flag: next(elsewhere, flag)):
        made.fitting._settle(tiny_batch(0, 0))
    assert len(objective.passed) == 2 and max(objective.passed[1:]) <= 24
    assert "out of memory in the largest micro-batch" in said[0]


def test_a_process_of_several_that_lacks_memory_in_a_step_ends_in_words(tmp_path):
    """The others wait for its sums, and torchrun ends them."""
    made, _ = tried(tmp_path, objective=Cramped(24), micro_batch_tokens=48)
    made.fitting.group = Group(1, 2)
    made.fitting._is_settled = True
    with pytest.raises(MachineError, match=r"on process 1 .*micro_batch_tokens=24"):
        made.fitting(tiny_batch(0, 0), 1e-3)


def test_memory_that_runs_out_in_a_worker_is_noticed(tmp_path):
    batch = documents(SHAPE, (100,) * 8)
    model = Transformer(SHAPE).initialise(0)
    said: list[str] = []
    made = trainer(
        tmp_path, model, objective=Cramped(300), workers=2, say=said.append, micro_batch_tokens=800
    )
    made.fitting(batch, 1e-3)
    assert made.update.settings.micro_batch_tokens == 400 and len(said) == 1
    assert all(weight.grad is None for weight in model.parameters())
