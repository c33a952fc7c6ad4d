"""The model's formulas against those of transformers."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fourstage.model.config import ModelConfig, RopeScaling
from fourstage.model.experts import Routing
from fourstage.model.positions import alibi_slopes, rotary_table
from fourstage.objectives.balance import balance_sum

SHORT = tuple(1 + pair / 10 for pair in range(8))
LONG = tuple(1.0 + pair for pair in range(8))
# our scaling, our context, what transformers is told, the length it sees
SCALINGS = {
    "linear": (RopeScaling("linear", 4.0), 64, {"factor": 4.0}, None),
    "dynamic as trained": (RopeScaling("dynamic", 4.0, 64), 64, {"factor": 4.0}, None),
    "dynamic beyond": (RopeScaling("dynamic", 4.0, 64), 160, {"factor": 4.0}, 160),
    "llama3": (
        RopeScaling("llama3", 8.0, 64, low_frequency=1.0, high_frequency=4.0),
        512,
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        None,
    ),
    "yarn": (RopeScaling("yarn", 4.0, 64), 256, {"factor": 4.0}, None),
    "yarn by hand": (
        RopeScaling("yarn", 16.0, 4096, beta_fast=16.0, beta_slow=2.0, attention_factor=1.2),
        65536,
        {"factor": 16.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.2},
        None,
    ),
    "longrope short": (
        RopeScaling("longrope", 4.0, 64, short_factors=SHORT, long_factors=LONG),
        64,
        {"factor": 4.0, "short_factor": list(SHORT), "long_factor": list(LONG)},
        64,
    ),
    "longrope long": (
        RopeScaling("longrope", 4.0, 64, short_factors=SHORT, long_factors=LONG),
        256,
        {"factor": 4.0, "short_factor": list(SHORT), "long_factor": list(LONG)},
        256,
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_angles_are_those_of_transformers(name):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, context, told, length = SCALINGS[name]
    original = scaling.original_context or context
    # What dynamic takes for the trained length is the config's own context.
    theirs = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=16,
        max_position_embeddings=original if scaling.kind == "dynamic" else context,
        rope_parameters={
            "rope_type": scaling.kind,
            "rope_theta": 500.0,
            "original_max_position_embeddings": original,
            **told,
        },
    )
    if scaling.kind == "longrope":
        theirs.original_max_position_embeddings = original
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling.kind](theirs, "cpu", seq_len=length)
    angles = torch.outer(torch.arange(context).float(), frequencies)
    config = ModelConfig(
        40, 64, 1, 4, 4, 64, context, head_width=16, rope_theta=500.0, rope_scaling=scaling
    )
    cos, sin = rotary_table(config, "cpu")
    # Angles grow with positions, and their rounding with them.
    # The table of long documents stands behind that of short ones.
    cos, sin = cos[-context:], sin[-context:]
    near = {"atol": 1e-6 * context, "rtol": 1e-5}
    assert_close(cos, angles.cos() * factor, **near)
    assert_close(sin, angles.sin() * factor, **near)


@pytest.mark.parametrize("heads", [1, 2, 8, 12, 16, 20, 71])
def test_slopes_are_those_of_transformers(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    assert_close(alibi_slopes(heads), theirs)


def test_the_balancing_loss_of_a_layer_is_that_of_transformers():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    sent = torch.bincount(logits.topk(2).indices.flatten(), minlength=6) / 50
    mine = balance_sum([Routing(logits, sent)]) / 50
    assert_close(mine, load_balancing_loss_func((logits,), 6, 2))
