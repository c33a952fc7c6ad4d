"""The C kernels agree with the plain formulas in float64, forwards and backwards."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fourstage import kernels
from fourstage.files import user_cache
from fourstage.kernels import attention, elements, library
from fourstage.kernels.attention import Heads, attend
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from memory_support import documents, peak_bytes

pytestmark = pytest.mark.skipif(library.load() is None, reason="this machine has no C compiler")


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch):
    monkeypatch.setattr("fourstage.kernels.dealing._WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def plain_attention(joint, cos, sin, lengths, heads, query_norm=None, key_norm=None):
    sizes = [heads.heads, heads.kv_heads, heads.kv_heads]
    q, k, v = joint.unflatten(-1, (-1, heads.head_width)).split(sizes, dim=1)
    if query_norm is not None:
        q = F.rms_norm(q, query_norm.shape, query_norm, heads.epsilon)
        k = F.rms_norm(k, key_norm.shape, key_norm, heads.epsilon)
    turned = 2 * cos.shape[1]
    q, k = (torch.cat([rotate(x[..., :turned], cos, sin), x[..., turned:]], dim=-1) for x in (q, k))
    parts, start = [], 0
    for length in lengths:
        cells = slice(start, start + length)
        start += length
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        if heads.window:
            seen &= torch.ones(length, length, dtype=torch.bool).triu(1 - heads.window)
        mixed = F.scaled_dot_product_attention(
            *(x[cells].transpose(0, 1) for x in (q, k, v)),
            attn_mask=seen,
            scale=heads.scale,
            enable_gqa=True,
        )
        parts.append(mixed.transpose(0, 1))
    return torch.cat(parts).flatten(1)


def same(got, wanted, tolerance=2e-6):
    assert got.dtype == torch.float32
    scale = wanted.detach().abs().max().clamp(min=1.0)
    assert float((got - wanted).detach().abs().max() / scale) < tolerance


def compare(kernel, formula, *inputs):
    """Outputs and gradients of a kernel in float32 and of its formula in float64."""
    exact = [x.double().requires_grad_() for x in inputs]
    single = [x.float().requires_grad_() for x in inputs]
    wanted, got = formula(*exact), kernel(*single)
    same(got, wanted)
    slopes = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, exact, slopes)
    for mine, theirs in zip(
        torch.autograd.grad(got, single, slopes.float()), gradients, strict=True
    ):
        same(mine, theirs)


@pytest.mark.parametrize(
    ("lengths", "heads", "turned", "norms"),
    [
        ([5, 17, 100, 48, 1, 49], Heads(4, 2, 32, 32**-0.5, 0, 1e-6), 32, True),
        ([64, 130], Heads(6, 6, 24, 0.3, 20), 12, False),
        ([257, 40], Heads(2, 1, 64, 0.125, 33, 1e-5), 64, True),
        ([1, 1, 2], Heads(3, 3, 2, 1.0), 2, False),
        ([30], Heads(2, 2, 80, 0.1), 0, False),
    ],
)
def test_attention_is_the_plain_formula(lengths, heads, turned, norms, threads):
    torch.manual_seed(len(lengths))
    cells = sum(lengths)
    joint = torch.randn(cells, (heads.heads + 2 * heads.kv_heads) * heads.head_width)
    angles = torch.rand(cells, turned // 2) * 6
    starts = torch.tensor([0, *lengths]).cumsum(0)
    weights = [torch.rand(heads.head_width) + 0.5 for _ in range(2)] if norms else []
    compare(
        lambda joint, *norms: attend(joint, angles.cos(), angles.sin(), starts, heads, *norms),
        lambda joint, *norms: plain_attention(
            joint, angles.double().cos(), angles.double().sin(), lengths, heads, *norms
        ),
        joint,
        *weights,
    )


def test_scores_of_any_size_keep_attention_finite():
    heads = Heads(1, 1, 16, 1.0)
    joint = torch.randn(40, 48) * 1e3
    angles = torch.zeros(40, 8)
    mixed = attend(joint, angles.cos(), angles.sin(), torch.tensor([0, 40]), heads)
    wanted = plain_attention(
        joint.double(), angles.double().cos(), angles.double().sin(), [40], heads
    )
    same(mixed, wanted, 1e-4)


@pytest.mark.parametrize("width", [1, 16, 90])
@pytest.mark.parametrize("rows", [1, 777])
def test_elements_are_the_plain_formulas(width, rows, threads):
    torch.manual_seed(width)
    x = torch.randn(rows, width) * 3
    both, weight = torch.randn(rows, 2 * width) * 3, torch.rand(width) + 0.5
    compare(elements.swiglu, lambda x: F.silu(x[:, :width]) * x[:, width:], both)
    compare(elements.relu2, lambda x: F.relu(x).square(), x)
    compare(
        lambda x, w: elements.rms_norm(x, w, 1e-6),
        lambda x, w: F.rms_norm(x, (width,), w, 1e-6),
        x,
        weight,
    )


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("vocabulary", [5, 333])
def test_logprobs_are_the_plain_formula(keep, vocabulary, threads):
    torch.manual_seed(0)
    hidden, weight = torch.randn(777, 40), torch.randn(vocabulary, 40)
    targets = torch.randint(0, vocabulary, (777,))

    def formula(h, w):
        logits = h @ w.t()
        return F.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0], logits.logsumexp(-1)

    for number in (0, 1):
        compare(
            lambda h, w, number=number: elements.logprobs(h, w, targets, 100, keep)[number],
            lambda h, w, number=number: formula(h, w)[number],
            hidden,
            weight,
        )
    entropies = elements.logprobs(hidden, weight, targets, 100, keep)[2]
    logits = hidden.double() @ weight.double().t()
    same(entropies, torch.distributions.Categorical(logits=logits).entropy(), 1e-5)


@pytest.mark.parametrize("target", [-1, 9])
def test_a_target_that_is_no_token_is_refused_and_not_read(target):
    given = (torch.randn(2, 4), torch.randn(9, 4), torch.tensor([3, target]))
    with pytest.raises(IndexError, match=f"target {target} .* vocabulary of 9"):
        elements.logprobs(*given, 64, True)


def test_without_gradients_the_logits_of_one_chunk_are_there_at_a_time():
    hidden, weight = torch.randn(1024, 16), torch.randn(500, 16, requires_grad=True)
    targets, chunk = torch.zeros(1024, dtype=torch.long), 4 * 64 * 500
    with torch.no_grad():
        assert peak_bytes(lambda: elements.logprobs(hidden, weight, targets, 64, True)) < 2 * chunk


def test_a_frozen_head_gets_no_gradient_and_takes_no_memory_for_one():
    hidden, weight = torch.randn(32, 64, requires_grad=True), torch.randn(4000, 64)
    targets, found, peaks = torch.arange(32), [], []
    for trained in (True, False):
        weight.requires_grad_(trained)
        loss = elements.logprobs(hidden, weight, targets, 64, True)[0].sum()
        hidden.grad = weight.grad = None
        peaks.append(peak_bytes(loss.backward))
        assert (weight.grad is not None) == trained
        found.append(hidden.grad)
    assert torch.equal(*found)
    assert peaks[0] - peaks[1] > 3 * weight.numel()


def test_logits_that_are_ruled_out_have_no_part_in_the_entropy():
    weight = torch.tensor([[0.0], [0.0], [-1e30]]).repeat(12, 1)
    found = elements.logprobs(torch.ones(1, 1), weight, torch.tensor([0]), 8, True)
    wanted = torch.tensor([24.0]).log()
    torch.testing.assert_close(torch.stack(found).flatten(), torch.cat([-wanted, wanted, wanted]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value):
    x = torch.randn(4, 32)
    x[2, 5] = value
    assert not elements.swiglu(x)[2].isfinite().all()
    assert not elements.relu2(x)[2].isfinite().all()
    assert not elements.rms_norm(x, torch.ones(32), 1e-6)[2].isfinite().all()
    found, _, _ = elements.logprobs(
        x, torch.randn(9, 32), torch.zeros(4, dtype=torch.long), 4, True
    )
    assert not found[2].isfinite() and found[[0, 1, 3]].isfinite().all()
    joint = torch.randn(10, 48)
    joint[3, 0] = value
    angles = torch.zeros(10, 8)
    mixed = attend(joint, angles.cos(), angles.sin(), torch.tensor([0, 10]), Heads(1, 1, 16, 1.0))
    assert not mixed[3].isfinite().all() and mixed[:3].isfinite().all()


def test_kernels_are_for_plain_float32_on_a_cpu():
    assert kernels.usable(torch.zeros(2))
    assert not kernels.usable(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    kernels.use(False)
    try:
        assert not kernels.usable(torch.zeros(2))
    finally:
        kernels.use(True)


def test_a_damaged_library_is_compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = library._compiled()
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    library.load.cache_clear()
    try:
        assert library.load() is not None
        assert path.read_bytes()[:1000] == whole[:1000]
        assert path.stat().st_size == len(whole)
    finally:
        monkeypatch.undo()
        library.load.cache_clear()


def test_without_a_compiler_there_are_no_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    library.load.cache_clear()
    try:
        assert library.load() is None
        assert "no C compiler" in library.why_not()
        assert not kernels.usable(torch.zeros(2))
    finally:
        monkeypatch.undo()
        library.load.cache_clear()
    assert library.load() is not None
    assert library.why_not() == ""


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    bad = tmp_path / "cc"
    bad.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho broken >&2\nexit 1\n')
    bad.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(bad))
    library.load.cache_clear()
    try:
        assert library.load() is None
        assert "broken" in library.why_not()
        assert not list((tmp_path / "cache" / "fourstage").iterdir())
    finally:
        monkeypatch.undo()
        library.load.cache_clear()


def test_a_user_without_a_home_has_a_temporary_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache().is_dir()


MODELS = {
    "usual": {},
    "grouped keys": {"kv_heads": 1},
    "no norms on queries and keys": {"qk_norm": False},
    "norms over all heads": {"qk_norm_whole": True},
    "windows of their own angles": {"windows": (16, 0), "local_rope_theta": 500.0},
    "partly turned, squared relu": {"rope_fraction": 0.5, "activation": "relu2"},
    "learned positions, biases": {
        "positions": "learned",
        "norm": "layer",
        "activation": "gelu",
        "qkv_bias": True,
        "qk_norm": False,
    },
    "capped scores and logits": {"attention_softcap": 5.0, "logit_softcap": 8.0},
    "offset norms": {"norm_offset": 1.0, "norm_placement": "around"},
    "experts": {"experts": 4, "experts_per_token": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_with_kernels_as_it_does_without(name):
    shape = {"width": 48, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_width": 80, "context": 64}
    config = ModelConfig(vocab_size=100, **{**shape, **MODELS[name]})
    model = Transformer(config).initialise(0)
    batch = documents(config, (50, 1, 64, 17))
    found = []
    for alone in (False, True):
        model.zero_grad()
        with kernels.without() if alone else contextlib.nullcontext():
            terms, metrics = NextToken(z_loss=0.1).sums(model, batch)
            (sum(terms.values()) / batch.cells).backward()
        found.append([*terms.values(), metrics["nll"][0], *(p.grad for p in model.parameters())])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)


def test_kernels_are_what_a_model_trains_with(monkeypatch):
    """Without this, the test above could compare torch with itself."""
    called = []
    for module, name in ((attention, "attend"), (elements, "swiglu"), (elements, "rms_norm")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, real=real, name=name: called.append(name) or real(*given)
        )
    real = elements.logprobs
    monkeypatch.setattr(
        elements, "logprobs", lambda *given: called.append("logprobs") or real(*given)
    )
    config = ModelConfig(100, 48, 2, 4, 4, 80, 64)
    NextToken().sums(Transformer(config).initialise(0), documents(config, (50, 17)))
    assert set(called) == {"attend", "swiglu", "rms_norm", "logprobs"}
    called.clear()
    NextToken().sums(Transformer(config).initialise(0).double(), documents(config, (50, 17)))
    assert not called
