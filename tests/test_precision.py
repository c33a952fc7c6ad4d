"""The precision of products: what a device has, and that all else stays in fp32."""

from __future__ import annotations

import importlib.util
from unittest import mock

import pytest
import torch
from torch import nn

from fourstage import precision
from fourstage.data.batch import Batch
from fourstage.errors import InputError, MachineError
from fourstage.evaluation.scoring import trained_logprobs
from fourstage.generation.engine import Engine
from fourstage.generation.sampling import Sampling
from fourstage.model.config import ModelConfig
from fourstage.model.norms import RMSNorm
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import logprobs
from fourstage.objectives.next_token import NextToken
from fourstage.precision import float8
from fourstage.recipe import load
from fourstage.stages.computing import settle_precision
from fourstage.training.fitting import Measured
from training_support import CONFIG, tiny_batch, tiny_model, trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _as_before():
    yield
    precision.use(None)


def on_gpu(capability: tuple[int, int]):
    return mock.patch.multiple(
        "torch.cuda",
        get_device_capability=lambda device: capability,
        get_device_name=lambda device: "Some GPU",
    )


@pytest.mark.parametrize(
    ("capability", "found"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_is_bf16_where_a_gpu_multiplies_it(capability, found):
    with on_gpu(capability):
        assert precision.resolve("auto", CUDA) == found
    assert precision.resolve("auto", CPU) == "fp32"


def test_what_a_device_does_not_have_is_refused_in_one_line():
    for choice, capability, written in (("bf16", (7, 5), "fp32"), ("fp8", (8, 6), "auto")):
        with on_gpu(capability), pytest.raises(MachineError) as told:
            precision.resolve(choice, CUDA)
        assert f"write compute.precision={written}" in str(told.value)
        assert "Some GPU" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(MachineError, match=r"8\.9"):
        precision.resolve("fp8", CPU)
    with pytest.raises(InputError, match="bf17"):
        precision.resolve("bf17", CPU)


def test_a_processor_without_instructions_for_bf16_is_called_slow():
    with mock.patch("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False}):
        assert "slower" in precision.described("bf16", CPU)
    with mock.patch("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True}):
        assert "slower" not in precision.described("bf16", CPU)


def test_a_stage_notes_its_precision_and_says_what_is_not_fp32():
    lines: list[str] = []
    for asked, taken, said in (("auto", "fp32", 0), ("bf16", "bf16", 1)):
        measured = Measured()
        compute = load("smoke", [f"compute.precision={asked}"]).compute
        settle_precision(compute, CPU, measured, lines.append)
        assert measured.found["precision"] == {"asked": asked, "taken": taken}
        assert len(lines) == said


def test_under_bf16_products_are_rounded_and_norms_losses_and_scores_are_not():
    precision.use("bf16")
    model, seen = Transformer(CONFIG, head="scalar").initialise(0), {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear | RMSNorm):
            part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    batch = tiny_batch(0, 0)
    with precision.autocast(CPU):
        hidden = model(batch.tokens, batch.layout)
        scores = model.scores(hidden)
    assert seen["model.layers.0.mlp.down_proj"] == torch.bfloat16
    assert seen["model.layers.0.input_layernorm"] == seen["model.norm"] == torch.float32
    assert hidden.dtype == scores.dtype == torch.float32
    assert torch.equal(scores, model.scores(hidden))
    with precision.autocast(CPU):
        assert logprobs(tiny_model(), batch).dtype == torch.float32


def test_losses_and_gradients_under_bf16_are_those_of_fp32_within_its_rounding():
    batch, found = tiny_batch(0, 0), {}
    for choice in ("fp32", "bf16"):
        precision.use(choice)
        model = tiny_model()
        with precision.autocast(CPU):
            loss = NextToken().sums(model, batch)[0]["tokens"] / batch.cells
        loss.backward()
        flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        assert flat.dtype == torch.float32
        found[choice] = loss.item(), flat
    assert found["bf16"][0] != found["fp32"][0]
    assert found["bf16"][0] == pytest.approx(found["fp32"][0], abs=1e-2)
    assert torch.cosine_similarity(found["bf16"][1], found["fp32"][1], dim=0) > 0.999


def test_a_run_in_bf16_keeps_its_weights_and_moments_in_fp32(tmp_path):
    precision.use("bf16")
    running = trainer(tmp_path, steps=3)
    running.train()
    held = [*running.module.parameters(), *running.update.optimiser.state().values()]
    assert {tensor.dtype for tensor in held} == {torch.float32}


def test_a_policy_is_scored_and_trained_with_the_numbers_it_responds_with():
    model, found = tiny_model(), {}
    for choice in ("bf16", "fp32"):
        precision.use(choice)
        done = Engine(model).generate([[1, 2, 3]], Sampling(max_new_tokens=8, seed=1))[0]
        row = torch.tensor([1, 2, 3, *done.tokens])
        weights = torch.tensor([0.0] * 2 + [1.0] * len(done.tokens))
        batch = Batch(row[:-1], (len(row) - 1,), row[1:], {"loss_weights": weights})
        old = trained_logprobs(model, batch)
        with precision.autocast(CPU):
            new = logprobs(model, batch).detach() * weights
        torch.testing.assert_close(old, new, atol=1e-3, rtol=0)
        drawn = torch.from_numpy(done.logprobs)
        found[choice] = (drawn - old[2:]).abs().max().item()
    assert found["fp32"] < 1e-5 and found["bf16"] < 5e-2


def test_guards_look_at_layers_as_they_are_without_fp8(tmp_path, monkeypatch):
    """There a document is rounded by the largest number of those beside it."""
    now, seen = [], []
    monkeypatch.setattr(float8, "convert", lambda module: now.append("fp8"))
    monkeypatch.setattr(float8, "restore", lambda module: now.append("plain"))
    precision.use("fp8")
    trainer(tmp_path, steps=1, guards=[lambda *_: seen.append(now[-1])]).train()
    assert seen == ["plain"] and now == ["fp8", "plain"] * 2


def test_fp8_without_torchao_names_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.float8", None)
    with pytest.raises(MachineError, match=r"pip install 'fourstage\[fp8\]'"):
        float8.convert(tiny_model())


@pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="torchao is not installed")
def test_fp8_takes_the_large_layers_of_blocks_and_gives_them_back():
    config = ModelConfig(
        vocab_size=640, width=512, layers=1, heads=4, kv_heads=1, mlp_width=528, context=32
    )
    model = Transformer(config).initialise(0)
    names, batch = list(model.state_dict()), tiny_batch(0, 0)
    exact = NextToken().sums(model, batch)[0]["tokens"].item()
    # q and o, gate, up and down: keys and values have 128 numbers, and the head is left out.
    assert float8.convert(model, emulate=True) == 5
    assert type(model.model.layers[0].self_attn.k_proj) is type(model.lm_head) is nn.Linear
    assert list(model.state_dict()) == names
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = NextToken().sums(model, batch)[0]["tokens"]
    rounded.backward()
    assert rounded.item() != exact and rounded.item() == pytest.approx(exact, rel=1e-2)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    float8.restore(model)
    assert NextToken().sums(model, batch)[0]["tokens"].item() == exact
    with pytest.raises(MachineError, match="512"):
        float8.convert(tiny_model())
