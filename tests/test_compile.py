"""Compiled blocks: the same numbers, one graph for all batches, a choice that is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from fourstage import compiled, kernels
from fourstage.compiled import as_written, compile_blocks, fusible, restore_blocks, why_not
from fourstage.data.batch import Batch
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import token_logprobs_and_normalisers
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.replicas import sharing_weights
from fourstage.training.fitting import Measured
from parallel_support import together
from training_support import CONFIG, same_bits, tiny_batch, tiny_model, trainer, weights_of

# Traces and differentiates as inductor's code does, without a compiler behind it.
QUICK = "aot_eager"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(kernels, "_wanted", False)
    torch._dynamo.reset()
    counters.clear()
    yield
    compiled._fuses = None
    torch._dynamo.reset()


@pytest.fixture
def quick(monkeypatch):
    """Trainers compile for a backend that needs no compiler."""
    monkeypatch.setattr(compile_blocks, "__defaults__", (QUICK,))


def loss(model: Transformer, batch: Batch) -> torch.Tensor:
    return NextToken().sums(model, batch)[0]["tokens"] / batch.cells


def gradients(model: Transformer, batch: Batch) -> list[torch.Tensor]:
    model.zero_grad()
    loss(model, batch).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("backend", [QUICK, pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_compiled_blocks_give_the_loss_and_gradients_of_those_written(backend, recompute):
    written, model = tiny_model(), tiny_model()
    compile_blocks(model, backend)
    model.recompute = recompute
    for step in range(3):
        batch = tiny_batch(0, step)
        assert loss(model, batch).item() == pytest.approx(loss(written, batch).item(), abs=1e-5)
        for ours, theirs in zip(gradients(model, batch), gradients(written, batch), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_layers_and_ragged_batches_share_their_graphs():
    model = tiny_model()
    compile_blocks(model, QUICK)
    found = []
    for step in range(6):
        gradients(model, tiny_batch(0, step, documents=2 + 2 * step))
        found.append(counters["stats"]["unique_graphs"])
    assert found[0] and set(found) == {found[0]}


@pytest.mark.parametrize(
    "options",
    [
        {"windows": (0, 5), "attention_softcap": 5.0, "norm_placement": "around"},
        {"positions": "alibi", "norm": "layer", "parallel_residual": True, "activation": "relu2"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_kind_of_block_compiles(options):
    config = ModelConfig(**(vars(CONFIG) | options))
    written, model = (Transformer(config).initialise(0) for _ in range(2))
    compile_blocks(model, QUICK)
    batch = tiny_batch(0, 0)
    for ours, theirs in zip(gradients(model, batch), gradients(written, batch), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_names_copies_and_hooks_are_those_of_the_model_as_written():
    model = tiny_model()
    names, seen = list(model.state_dict()), []
    compile_blocks(model, QUICK)
    assert list(model.state_dict()) == names
    twin = sharing_weights(model)
    assert twin.model.layers[0].forward.block is twin.model.layers[0]
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    with as_written():
        loss(model, tiny_batch(0, 0))
    hook.remove()
    assert seen
    restore_blocks(model)
    loss(model, tiny_batch(0, 0))
    assert not counters["stats"]


def test_what_has_no_gradient_is_computed_as_written_before_the_first_step_and_after_it():
    model, batch = tiny_model(), tiny_batch(0, 0)
    written = trained_logprobs(model, batch)
    compile_blocks(model, QUICK)
    assert torch.equal(trained_logprobs(model, batch), written)
    assert not counters["stats"]
    gradients(model, batch)
    assert counters["stats"]


def test_what_is_fused_is_written_once_and_open_in_its_first_axis():
    @fusible
    def shifted(x: torch.Tensor, by: float) -> torch.Tensor:
        return x + by

    assert torch.equal(shifted(torch.zeros(3), 1.0), torch.ones(3)) and not counters["stats"]
    compiled._fuses = QUICK
    for cells in (3, 4, 7):
        assert torch.equal(shifted(torch.zeros(cells), 1.0), torch.ones(cells))
    assert counters["stats"]["unique_graphs"] == 1


def test_fused_normalisers_are_those_of_the_logits():
    compiled._fuses = QUICK
    hidden = torch.randn(5, 8, requires_grad=True)
    weight, targets = torch.randn(11, 8), torch.randint(11, (5,))
    found = token_logprobs_and_normalisers(lambda x: x @ weight.T, hidden, targets, 11)
    logits = hidden @ weight.T
    torch.testing.assert_close(found[1], logits.logsumexp(-1))
    torch.testing.assert_close(found[0], logits.log_softmax(-1)[torch.arange(5), targets])


def test_a_compiled_run_that_is_cut_off_ends_with_the_bits_of_one_that_is_not(tmp_path, quick):
    def run(folder: str, steps: int, found: dict[str, Any]) -> Transformer:
        running = trainer(
            tmp_path / folder, tiny_model(), steps=steps, schedule="constant", compile="on"
        )
        running.fitting.compilation.measured = Measured(found, found.update)
        running.train()
        return running.module

    kept: dict[str, Any] = {}
    whole = run("whole", 6, {})
    run("cut", 4, kept)
    assert kept["compile"] == {"asked": "on", "device": "cpu", "taken": True}
    assert same_bits(weights_of(run("cut", 6, kept)), weights_of(whole))
    assert "forward" not in vars(whole.model.layers[0])


def settled(tmp_path, lines: list[str], found: dict[str, Any], **changed: Any) -> bool:
    """Whether the blocks of a trainer are compiled after its first step."""
    running = trainer(tmp_path, say=lines.append, **changed)
    compilation = running.fitting.compilation
    compilation.measured = Measured(found, found.update)
    running.fitting(tiny_batch(0, 0), 1e-3)
    running.fitting(tiny_batch(0, 1), 1e-3)
    is_on = compilation.is_on
    compilation.close()
    return is_on


def test_where_compiling_fails_the_run_goes_on_as_written_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_blocks, "__defaults__", (_fails,))
    lines: list[str] = []
    found: dict[str, Any] = {}
    assert not settled(tmp_path, lines, found, compile="on")
    assert [line for line in lines if "not compiled" in line and "no such register" in line]
    assert len(lines) == 1 and found["compile"]["taken"] is False
    # What a stage began with holds, though it would work now.
    monkeypatch.setattr(compile_blocks, "__defaults__", (QUICK,))
    assert not settled(tmp_path, lines, found, compile="on")
    assert settled(tmp_path, lines, {}, compile="on")


def _fails(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no such register")


def test_what_a_trial_left_that_failed_half_way_back_counts_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_blocks, "__defaults__", (_fails_on_its_way_back,))
    found = []
    for way in ("on", "off"):
        lines: list[str] = []
        running = trainer(tmp_path / way, tiny_model(), say=lines.append, compile=way)
        running.fitting(tiny_batch(0, 0), 1e-3)
        found.append(weights_of(running.module))
        assert bool(lines) == (way == "on")
    assert same_bits(*found)


def _fails_on_its_way_back(graph: Any, inputs: Any) -> Any:
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    def broken(*_: Any) -> Any:
        raise RuntimeError("no such register")

    def as_it_is(graph: Any, _: Any) -> Any:
        return make_boxed_func(graph.forward)

    def backwards(graph: Any, inputs: Any) -> Any:
        # The loss comes first, and has no products.
        is_block = any("mm" in str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(broken) if is_block else as_it_is(graph, inputs)

    return aot_autograd(fw_compiler=as_it_is, bw_compiler=backwards)(graph, inputs)


def test_a_processor_without_a_compiler_is_told(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "C++ compiler" in why_not(tiny_model(), torch.device("cpu"))


def test_mixtures_of_experts_stay_as_written():
    config = ModelConfig(**(vars(CONFIG) | {"experts": 4, "experts_per_token": 2}))
    assert "experts" in why_not(Transformer(config), torch.device("cpu"))


def test_on_a_cpu_nothing_is_compiled_unless_asked_for(tmp_path):
    found: dict[str, Any] = {}
    lines: list[str] = []
    assert not settled(tmp_path, lines, found)
    assert not lines and found["compile"]["taken"] is False and not counters["stats"]


def test_copies_in_threads_are_compiled_too(tmp_path, quick):
    def run(folder: str, way: str) -> Transformer:
        running = trainer(
            tmp_path / folder, tiny_model(), steps=3, compile=way, workers=2, source=_Long()
        )
        running.train()
        return running.module

    ours, theirs = run("on", "on"), run("off", "off")
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"]


class _Long:
    def batch(self, step: int) -> Batch:
        return tiny_batch(0, step, documents=60)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        assert not state


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shard", "replicate"])
def test_compiled_blocks_train_on_several_processes_as_on_one(layout, tmp_path):
    found = together(2, "test_compile:trained_together", layout, str(tmp_path))
    alone = trained(tmp_path / "alone", "off")
    assert all(each["is_on"] for each in found)
    assert found[0]["losses"] == pytest.approx(alone["losses"], abs=1e-5)


def trained_together(group: Any, layout: str, folder: str) -> dict[str, Any]:
    """What each process does: a few compiled steps, sharded (FSDP2) or as replicas."""
    from fourstage.parallel.mesh import Mesh
    from fourstage.parallel.sizes import Sizes

    sizes = Sizes(shard=2) if layout == "shard" else Sizes(replicate=2)
    compile_blocks.__defaults__ = (QUICK,)
    return trained(f"{folder}/{group.rank}", "on", group=group, mesh=Mesh(group, sizes))


def trained(folder: Any, way: str, **placed: Any) -> dict[str, Any]:
    from pathlib import Path

    kernels.use(False)
    running = trainer(Path(folder), copy.deepcopy(tiny_model()), compile=way, **placed)
    steps = range(3)
    losses = [running.fitting(tiny_batch(0, step), 1e-3).loss for step in steps]
    return {"losses": losses, "is_on": running.fitting.compilation.is_on}
