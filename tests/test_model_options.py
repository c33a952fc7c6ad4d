"""What the model promises for each option and for each family of options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fourstage.errors import InputError
from fourstage.model.cache import KVCache
from fourstage.model.config import ModelConfig, RopeScaling
from fourstage.model.families import FAMILIES, windows
from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer
from tiny_models import logits_of, tiny_family, tiny_model

LONG = RopeScaling(
    "longrope", 4.0, 12, short_factors=(1.0, 1.1, 1.2, 1.5), long_factors=(1.0, 2.0, 3.0, 4.0)
)
OPTIONS = {
    "window": {"windows": (5, 0)},
    "soft-capped scores": {"attention_softcap": 2.0, "windows": (0, 3)},
    "soft-capped logits": {"logit_softcap": 3.0, "logit_multiplier": 0.5},
    "slopes": {"positions": "alibi"},
    "capped slopes in a window": {
        "positions": "alibi",
        "attention_softcap": 2.0,
        "windows": (4, 4),
    },
    "learned positions": {"positions": "learned", "embedding_norm": True},
    "part of a head": {"rope_fraction": 0.5},
    "a local base": {"local_rope_theta": 100.0, "windows": (6, 0)},
    "a scale": {"attention_scale": 0.7, "qk_norm_whole": True},
    "relu2": {"activation": "relu2", "mlp_bias": True, "norm": "layer"},
    "plain experts": {"activation": "gelu", "experts": 3, "normalise_experts": False},
    "linear": {"rope_scaling": RopeScaling("linear", 2.0)},
    "dynamic": {"rope_scaling": RopeScaling("dynamic", 2.0, 16)},
    "llama3": {"rope_scaling": RopeScaling("llama3", 8.0, 16)},
    "yarn": {"rope_scaling": RopeScaling("yarn", 3.0, 16)},
    "longrope": {"rope_scaling": LONG},
}
LENGTHS = [9, 3, 14, 1, 13]


def documents(lengths: list[int] = LENGTHS) -> list[list[int]]:
    return [[(7 * row + 5 * place) % 60 for place in range(n)] for row, n in enumerate(lengths)]


def flat(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([token for row in rows for token in row])


MODELS = [
    *(pytest.param(lambda name=name: tiny_family(name), id=name) for name in FAMILIES),
    *(pytest.param(lambda o=o: tiny_model(**o), id=name) for name, o in OPTIONS.items()),
]
every_model = pytest.mark.parametrize("make", MODELS)


@every_model
def test_documents_packed_together_are_as_alone(make):
    model, rows = make().double(), documents()
    with torch.no_grad():
        together = model.logits(model(flat(rows), Layout(LENGTHS)))
    for row, logits in zip(rows, together.split(LENGTHS), strict=True):
        assert_close(logits, logits_of(model, row), atol=1e-9, rtol=1e-9)


@every_model
def test_generating_a_token_at_a_time_is_as_reading_them_all(make):
    model, rows = make().double(), documents()
    scaling = model.config.rope_scaling
    begun = [3, 1, 2, 1, 2] if scaling == LONG else [max(1, n // 2) for n in LENGTHS]
    cache = KVCache(model.config, len(rows), 30, dtype=torch.float64)
    more = [(3 * place) % 60 for place in range(9)]
    rows = [(row + more)[: n + 9] for row, n in zip(rows, begun, strict=True)]
    read = [logits_of(model, row) for row in rows]
    with torch.no_grad():
        starts = [row[:n] for row, n in zip(rows, begun, strict=True)]
        model(flat(starts), Layout(begun), cache=cache)
        for step in range(9):
            new = [row[n + step] for row, n in zip(rows, begun, strict=True)]
            logits = model.logits(model.decode(torch.tensor(new), cache))
            for whole, n, drawn in zip(read, begun, logits, strict=True):
                assert_close(drawn, whole[n + step], atol=1e-9, rtol=1e-9)


@every_model
def test_every_weight_gets_a_finite_gradient_and_recomputation_the_same_one(make):
    model, rows = make(), documents()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        logits = model.logits(model(flat(rows), Layout(LENGTHS)))
        torch.nn.functional.cross_entropy(logits, flat(rows).roll(-1)).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert plain.keys() == dict(model.named_parameters()).keys()
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in plain.values())
    model.recompute = "block"
    for name, gradient in gradients().items():
        assert torch.equal(gradient, plain[name]), name


@every_model
def test_parameters_are_counted_exactly(make):
    model = make()
    assert model.config.parameters() == sum(p.numel() for p in model.parameters())


@every_model
def test_weights_are_a_function_of_the_seed_and_start_finite(make):
    config = make().config
    one, same, other = (Transformer(config).initialise(seed) for seed in (1, 1, 2))
    for name, weight in one.named_parameters():
        assert torch.equal(weight, dict(same.named_parameters())[name])
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)
    rows = documents()
    loss = one.logits(one(flat(rows), Layout(LENGTHS))).logsumexp(-1).mean()
    assert loss.isfinite()


@pytest.mark.parametrize("position", [4, 5, 6, 13])
def test_a_window_of_five_reaches_back_five_cells(position):
    model = tiny_model(layers=1, windows=(5,))
    row = documents([14])[0]
    with torch.no_grad():
        before = model(torch.tensor(row), Layout([14]))[position]
        for place in range(position + 1):
            changed = row.copy()
            changed[place] = (changed[place] + 1) % 60
            after = model(torch.tensor(changed), Layout([14]))[position]
            assert torch.equal(before, after) == (place <= position - 5), place


def test_soft_caps_bound_what_they_cap():
    model = tiny_model(logit_softcap=0.5)
    assert logits_of(model, documents()[2]).abs().max() <= 0.5


def test_layers_with_a_window_turn_by_their_own_base():
    mixed = tiny_model(local_rope_theta=50.0, windows=(40, 40))
    local = tiny_model(rope_theta=50.0)
    row = documents()[2]
    assert_close(logits_of(mixed, row), logits_of(local, row))
    assert not torch.allclose(logits_of(tiny_model(), row), logits_of(local, row), atol=1e-2)


def test_a_document_that_is_longer_than_the_original_context_turns_by_the_long_factors():
    model = tiny_model(rope_scaling=LONG)
    short, long = (
        tiny_model(rope_scaling=replace(LONG, short_factors=f, long_factors=f))
        for f in (LONG.short_factors, LONG.long_factors)
    )
    row = [(3 * place) % 60 for place in range(20)]
    assert_close(logits_of(model, row[:12]), logits_of(short, row[:12]))
    assert_close(logits_of(model, row[:13]), logits_of(long, row[:13]))
    assert not torch.allclose(logits_of(short, row), logits_of(long, row), atol=1e-2)
    # A row keeps what its prompt began with, and takes it along when others leave.
    prompts = [row[:13], row[:4], row[:16]]
    cache = KVCache(model.config, 3, 30)
    with torch.no_grad():
        model(flat(prompts), Layout([13, 4, 16]), cache=cache)
        cache.keep(torch.tensor([2, 1]))
        for step in range(10):
            new = torch.tensor([row[(16 + step) % 20], row[4 + step]])
            drawn = model.logits(model.decode(new, cache))
        last = row[16:] + row[:6]
    assert_close(drawn[0], logits_of(long, row[:16] + last)[-1], atol=1e-4, rtol=1e-4)
    assert_close(drawn[1], logits_of(short, row[:14])[-1], atol=1e-4, rtol=1e-4)


def test_windows_leave_each_nth_layer_open():
    assert windows(8, 3, 7) == (8, 8, 0, 8, 8, 0, 8)
    assert windows(8, 0, 2) == (8, 8)
    assert windows(0, 3, 2) == ()


def test_a_projection_that_is_more_than_its_weight_is_called_itself():
    model, row = tiny_model(qkv_bias=True), documents()[2]
    whole = logits_of(model, row)
    attention = model.model.layers[0].self_attn
    seen = []
    hook = attention.k_proj.register_forward_hook(lambda m, i, o: seen.append(o))
    assert_close(logits_of(model, row), whole)
    hook.remove()

    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    doubled = Doubled(32, 16)
    doubled.load_state_dict({n: w / 2 for n, w in attention.v_proj.state_dict().items()})
    attention.v_proj = doubled
    assert len(seen) == 1
    assert_close(logits_of(model, row), whole)


def test_a_longer_context_keeps_the_weights_and_turns_by_other_angles():
    model, row = tiny_model(), documents()[2]
    linear = RopeScaling("linear", 2.0)
    longer = model.with_context(96, linear)
    assert longer.config == replace(model.config, context=96, rope_scaling=linear)
    assert_close(logits_of(longer, row), logits_of(tiny_model(rope_scaling=linear), row))
    assert logits_of(longer, row * 6).isfinite().all()
    learned = tiny_model(positions="learned")
    assert_close(logits_of(learned.with_context(20, None), row), logits_of(learned, row))
    with pytest.raises(InputError, match="48 positions"):
        learned.with_context(64, None)


def test_operations_of_a_window_are_counted_over_the_cells_it_shows():
    def scores(length: int, **options) -> float:
        config, bare = (tiny_model(layers=1, **o).config for o in (options, {}))
        mean = (length + 1) / 2
        return config.forward_flops_per_token(mean) - bare.forward_flops_per_token(0)

    for length in (3, 5, 6, 20):
        seen = sum(min(place + 1, 5) for place in range(length)) / length
        assert scores(length, windows=(5,)) == pytest.approx(4 * 32 * seen)


def test_options_that_do_not_fit_are_named():
    sizes = {"vocab_size": 60, "width": 32, "layers": 2, "heads": 4, "kv_heads": 4}
    sizes |= {"mlp_width": 48, "context": 48}
    for wrong, words in (
        ({"experts": 2, "experts_per_token": 3}, "experts_per_token"),
        ({"experts": 2, "mlp_bias": True}, "mlp_bias"),
        ({"windows": (4,)}, "windows"),
        ({"positions": "alibbi"}, "alibi"),
        ({"parallel_residual": True, "norm_placement": "after"}, "norm_placement"),
        ({"rope_scaling": RopeScaling("longrope", 2.0, 8)}, "4 of each"),
    ):
        with pytest.raises(InputError, match=words):
            ModelConfig(**sizes, **wrong)
