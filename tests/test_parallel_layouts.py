"""However a model lies on processes, it learns the same; what one layout left, another goes on."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from parallel_support import together

ONE = {1: {"one": {}}}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "replicas": {"replicate": 2},
        "shards": {"shard": 2},
        "tensor": {"tensor": 2},
        "sequence": {"tensor": 2, "sequence": True},
    },
    4: {
        "replicas of shards": {"replicate": 2, "shard": 2},
        "shards of tensor": {"shard": 2, "tensor": 2},
    },
}
STEPS = {"pretrain": 20, "sft": 20, "reward": 20, "rl": 10}


def _of_stage(layouts: dict[str, dict[str, Any]], stage: str, **more: Any) -> dict[str, Any]:
    return {name: {"stage": stage, **layout, **more} for name, layout in layouts.items()}


def _losses(folder, stage: str, **more: Any) -> dict[str, list]:
    """layout -> loss and gradient norm of each step; every process found the same."""
    found: dict[str, list] = {}
    for processes, layouts in (ONE | LAYOUTS).items():
        asked = _of_stage(layouts, stage, **more)
        if processes == 1:
            asked["accumulated"] = {**asked["one"], "settings": {"micro_batch_tokens": 9}}
        answers = together(
            processes, "parallel_cases:losses", str(folder / str(processes)), asked, STEPS[stage]
        )
        assert all(answer == answers[0] for answer in answers)
        found |= answers[0]
    return found


@pytest.mark.parametrize("stage", STEPS)
def test_every_layout_trains_as_one_process_does(tmp_path, stage):
    found = _losses(tmp_path, stage)
    one = found.pop("one")
    assert len(one) == STEPS[stage] and len(found) == 7
    for layout, steps in found.items():
        for number, (here, there) in enumerate(zip(steps, one, strict=True)):
            assert here == pytest.approx(there, rel=1e-4), (layout, number)


OTHER_MODELS: dict[str, dict[str, Any]] = {
    "biases and layer norm": {
        "qkv_bias": True, "output_bias": True, "mlp_bias": True, "norm": "layer",
        "activation": "gelu", "positions": "learned", "tie_embeddings": True,
    },
    "norms around, capped": {
        "norm_placement": "around", "attention_softcap": 20.0, "logit_softcap": 10.0,
        "activation": "geglu", "embedding_multiplier": 5.0, "windows": (4, 0),
    },
    "parallel residual": {"parallel_residual": True, "qk_norm": False, "rope_fraction": 0.5},
    "alibi": {"positions": "alibi", "embedding_norm": True, "norm": "layer"},
    "a vocabulary that does not divide": {"vocab_size": 41},
    "blocks made again": {"recompute": "block"},
}  # fmt: skip


def test_every_kind_of_model_is_laid_out(tmp_path):
    cases = {
        f"{kind}: {layout}": {**sizes, "model": options}
        for kind, options in OTHER_MODELS.items()
        for layout, sizes in (LAYOUTS[2] | {"one": {}}).items()
        if layout != "replicas"
    }
    alone = {name: case for name, case in cases.items() if name.endswith("one")}
    shared = {name: case for name, case in cases.items() if name not in alone}
    one = together(1, "parallel_cases:losses", str(tmp_path / "1"), alone, 5)[0]
    two = together(2, "parallel_cases:losses", str(tmp_path / "2"), shared, 5)[0]
    for name, steps in two.items():
        expected = one[f"{name.split(':')[0]}: one"]
        for here, there in zip(steps, expected, strict=True):
            assert here == pytest.approx(there, rel=1e-4), name


def test_a_checkpoint_of_each_layout_goes_on_in_each_other_one(tmp_path):
    every = ONE | LAYOUTS
    saved = tmp_path / "saved"
    for processes, layouts in every.items():
        said = together(processes, "parallel_cases:half_way", str(saved), layouts)
        assert all("after step 4 of 8 and saved" in line for lines in said for line in lines)
    straight = together(1, "parallel_cases:to_the_end", str(tmp_path / "straight"), ONE[1])[0]
    expected = straight["one"]
    for processes, layouts in every.items():
        tried = {}
        for before in [name for group in every.values() for name in group]:
            for name, layout in layouts.items():
                shutil.copytree(saved / before, tmp_path / "tried" / f"{before} -> {name}")
                tried[f"{before} -> {name}"] = layout
        found = together(processes, "parallel_cases:to_the_end", str(tmp_path / "tried"), tried)
        for name, end in found[0].items():
            assert end["losses"] == pytest.approx(expected["losses"][4:], rel=1e-4), name
            assert end["weights"] == pytest.approx(expected["weights"], rel=1e-4), name
