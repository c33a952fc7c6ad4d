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
# Ratios, means and corrections of whole responses; a critic that begins alone.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "gspo": {
        "algorithm": "gspo", "clip_low": 0.2, "clip_high": 0.3, "entropy_coefficient": 0.01,
        "correction": "tis", "correction_level": "sequence",
    },
    "grpo": {"algorithm": "grpo", "kl_coefficient": 0.05},
    "grpo once": {
        "algorithm": "grpo", "kl_coefficient": 0.05, "epochs": 1, "minibatches": 1,
    },
    "a critic first": {"algorithm": "ppo", "value_warmup": 1, "dual_clip": 3.0},
}  # fmt: skip
# Of the tests of rollouts.
LEARNED: dict[str, dict[str, Any]] = {
    "ppo": {},
    "grpo": {"algorithm": "grpo", "group": 4},
    "grpo once": {"algorithm": "grpo", "group": 4, "epochs": 1, "minibatches": 1},
}
BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "norm": "layer"}
MODELS: dict[str, dict[str, Any]] = {
    "GPT-2": {**BIASES, "activation": "gelu", "positions": "learned", "tie_embeddings": True},
    "Gemma": {
        "norm_placement": "around",
        "attention_softcap": 20.0,
        "logit_softcap": 10.0,
        "activation": "geglu",
        "embedding_multiplier": 5.0,
        "windows": (4, 0),
    },
    "NeoX": {"parallel_residual": True, "qk_norm": False, "rope_fraction": 0.5},
    "BLOOM": {**BIASES, "positions": "alibi", "embedding_norm": True},
    "an odd vocabulary": {"vocab_size": 41},
    "blocks made again": {"recompute": "block"},
    "experts": {"experts": 4},
    "experts made again": {"experts": 4, "recompute": "block"},
}
OPTIMISERS = ("muon", "adamw8bit")
NOT_SHARED = {"experts", "experts made again", "adamw8bit"}


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, dict[str, list]]:
    """case -> layout -> loss and gradient norm of each step; every process found the same."""
    folder = tmp_path_factory.mktemp("losses")
    found: dict[str, dict[str, list]] = {}
    for processes, layouts in (ONE | LAYOUTS).items():
        cases = {
            f"{case}: {name}": {"stage": case, "steps": steps, **layout}
            for case, steps in STEPS.items()
            for name, layout in layouts.items()
        }
        if processes == 1:
            cases["pretrain: accumulated"] = {
                **cases["pretrain: one"], "settings": {"micro_batch_tokens": 9}
            }  # fmt: skip
        # Wide enough for moments in 8 bits.
        wide = {"mlp_width": 256}
        others = {o: {"model": wide, "settings": {"optimiser": o}} for o in OPTIMISERS}
        if processes < 4:
            others |= {case: {"model": model} for case, model in MODELS.items()}
            others |= {
                name: {"stage": "rl", "steps": STEPS["rl"], "model": {"section": section}}
                for name, section in ALGORITHMS.items()
            }
        cases |= {
            f"{case}: {name}": {"steps": 3, **other, **layout}
            for case, other in others.items()
            for name, layout in layouts.items()
            if (name != "replicas" or case in ALGORITHMS)
            and not ("tensor" in layout and case in NOT_SHARED)
        }
        answers = together(processes, "parallel_cases:losses", str(folder / str(processes)), cases)
        assert all(answer == answers[0] for answer in answers)
        for name, steps in answers[0].items():
            case, layout = name.split(": ")
            found.setdefault(case, {})[layout] = steps
    return found


@pytest.mark.parametrize("case", [*STEPS, *ALGORITHMS, *MODELS, *OPTIMISERS])
def test_every_layout_trains_as_one_process_does(losses, case):
    one, *others = losses[case].items()
    steps = STEPS["rl"] if case in ALGORITHMS else STEPS.get(case, 3)
    assert len(one[1]) == steps and others
    for layout, steps in others:
        for number, (here, there) in enumerate(zip(steps, one[1], strict=True)):
            assert here == pytest.approx(there, rel=1e-4), (layout, number)


def test_processes_learn_from_the_same_responses_and_the_same_rewards():
    one, *two = (found for n in (1, 2) for found in together(n, "parallel_cases:rolled"))
    assert two[0] == two[1]
    assert two[0]["tokens"] == one["tokens"]
    for (here, scores), (there, others) in zip(
        two[0]["iterations"], one["iterations"], strict=True
    ):
        assert here == pytest.approx(there, rel=1e-4) and scores == others
        assert there["redrawn_groups"] > 0


def test_processes_that_draw_together_learn_what_one_learns(tmp_path):
    """Of their own responses, which each draws a share of."""
    one, *two = (
        found
        for processes in (1, 2)
        for found in together(
            processes, "parallel_cases:learned", str(tmp_path / str(processes)), LEARNED
        )
    )
    assert two[0] == two[1]
    for name, (losses, tokens) in one.items():
        others, drawn = two[0][name]
        assert len(losses) == 10 and drawn == tokens
        assert others == pytest.approx(losses, rel=1e-4, abs=1e-5), name


def test_a_checkpoint_of_each_layout_goes_on_in_each_other_one(tmp_path):
    every = ONE | LAYOUTS
    saved = tmp_path / "saved"
    for processes, layouts in every.items():
        said = together(processes, "parallel_cases:half_way", str(saved), layouts)
        assert all("after step 4 of 8 and saved" in line for lines in said for line in lines)
    expected: dict[str, Any] = {}
    for processes, layouts in every.items():
        tried = {}
        for before in [name for group in every.values() for name in group]:
            for name, layout in layouts.items():
                shutil.copytree(saved / before, tmp_path / "tried" / f"{before} -> {name}")
                tried[f"{before} -> {name}"] = layout
        if processes == 1:
            tried["straight"] = ONE[1]["one"]
        found = together(processes, "parallel_cases:to_the_end", str(tmp_path / "tried"), tried)
        expected = expected or found[0].pop("straight")
        for name, end in found[0].items():
            assert end["steps"] == 8
            assert end["losses"] == pytest.approx(expected["losses"][4:], rel=1e-4), name
            assert end["weights"] == pytest.approx(expected["weights"], rel=1e-4), name
