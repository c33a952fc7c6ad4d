"""How a family names its weights, beside the names used here, which are Llama's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Modules of a layer that other families hold in one.
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
EXPERT_PARTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Names:
    """What differs from Llama.

    Attributes:
        body: the module that holds all but the head. blocks: its list of layers.
        ends: modules outside the layers, ours -> theirs.
        modules: modules of a layer, ours -> theirs.
        fused: modules of a layer that hold several of ours, one below the other, theirs -> ours.
        by_head: fused modules hold query, key and value of each head together (Megatron-LM).
        transposed: modules of theirs whose weight is [inputs, outputs] (GPT-2's Conv1D).
        gated: the MLP always has a gate; a squared ReLU is then a ReLU whose gate equals its up.
        mixture: what a layer calls its mixture of experts.
        expert: what an expert calls its gate, up and down.
    """

    body: str = "model"
    blocks: str = "layers"
    ends: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_head: bool = False
    transposed: tuple[str, ...] = ()
    gated: bool = True
    mixture: str = "mlp"
    expert: tuple[str, str, str] = EXPERT_PARTS
