"""Stages with adapters and frozen weights, whole runs of them, and their layouts on processes."""

import shutil
from pathlib import Path

import pytest
import torch

from fourstage.adapters.adapting import adapt, adapted_layers
from fourstage.interchange import load_model
from fourstage.model.layout import Layout
from fourstage.parallel.group import Group
from fourstage.parallel.mesh import Mesh
from fourstage.parallel.sizes import Sizes
from fourstage.recipe.adapter import Adapter
from fourstage.stages import rl
from parallel_support import together
from pipeline_support import go, results, tiny, touched, weights
from tiny_models import tiny_model
from training_support import trainer, weights_of

ADAPTERS = [f"{stage}.adapter.rank=4" for stage in ("sft", "reward", "rl")]
TOKENS = torch.tensor([5, 3, 9, 1, 7, 2, 30, 8])


def hidden(model):
    with torch.no_grad():
        return model(TOKENS, Layout([len(TOKENS)]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose last three stages have adapters, and the players of the last one."""
    seen = {}

    def players(context):
        seen["players"] = found = original(context)
        seen["start"] = hidden(found.reference)
        shared = {p.data_ptr() for p in found.trained.policy.parameters()}
        seen["own memory"] = {p.data_ptr() for p in found.reference.parameters()} - shared
        return found

    original, rl._players = rl._players, players
    run = tmp_path_factory.mktemp("adapters") / "run"
    try:
        go(tiny(*ADAPTERS), run)
    finally:
        rl._players = original
    return run, seen


def test_a_run_with_adapters_leaves_whole_models_and_adapters_that_make_them(finished):
    run, _ = finished
    for stage in ("sft", "reward", "rl"):
        model, merged = load_model(run / stage / "model"), load_model(run / stage / "adapter")
        assert model.head == merged.head
        there = weights_of(merged)
        for name, weight in weights_of(model).items():
            torch.testing.assert_close(weight, there[name], atol=1e-6, rtol=1e-5)
    parent, child = (weights_of(load_model(run / s / "model")) for s in ("pretrain", "sft"))
    moved = {name for name in child if not torch.equal(child[name], parent[name])}
    assert len(moved) == 7 and all("_proj" in name for name in moved)


def test_a_policy_is_its_own_reference_and_that_is_the_chat_model(finished):
    run, seen = finished
    assert seen["own memory"] == set()
    chat = load_model(run / "sft" / "model")
    assert torch.equal(seen["start"], hidden(chat))
    assert torch.equal(hidden(seen["players"].reference), hidden(chat))
    assert results(run, "rl")["metrics"]["kl"] != 0


def test_the_card_says_what_was_trained(finished):
    card = (finished[0] / "sft" / "model" / "README.md").read_text()
    assert "lora adapter of rank 4 beside 7 frozen matrices" in card


def test_a_stage_with_an_adapter_goes_on_to_the_same_bits(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = weights(run)
    shutil.rmtree(run / "sft" / "model")
    (run / "sft" / "results.json").unlink()
    *_, newest = sorted((run / "sft" / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)
    said = go(tiny(*ADAPTERS), run, only="sft")
    assert any(line.startswith("going on from step") for line in said)
    assert weights(run)["sft"] == before["sft"]


def test_a_stage_starts_from_the_adapter_of_another_run(finished, tmp_path):
    adapter = finished[0] / "sft" / "adapter"
    recipe = tiny("reward.learning_rate=1e-9", f"reward.from={adapter}")
    go(recipe, tmp_path / "run", only="reward")
    model, chat = (
        load_model(run / stage / "model")
        for run, stage in ((tmp_path / "run", "reward"), (finished[0], "sft"))
    )
    torch.testing.assert_close(hidden(model), hidden(chat), atol=1e-4, rtol=1e-4)


def test_fewer_bits_are_told_and_given_back_in_full(finished, tmp_path):
    run = tmp_path / "run"
    go(
        tiny(
            f"sft.from={finished[0] / 'pretrain' / 'model'}",
            "sft.adapter.base=nf4",
            "sft.adapter.kind=dora",
        ),
        run,
        only="sft",
    )
    assert "held in nf4" in (run / "sft" / "model" / "README.md").read_text()
    model = load_model(run / "sft" / "model")
    assert weights_of(model).keys() == weights_of(load_model(finished[0] / "sft" / "model")).keys()


def test_frozen_weights_keep_their_bytes_through_a_stage(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    kept = touched(run, ["pretrain"])
    go(tiny("sft.freeze=model.embed_tokens.*,model.norm.weight"), run, only="sft")
    assert touched(run, ["pretrain"]) == kept
    before, after = (weights_of(load_model(run / s / "model")) for s in ("pretrain", "sft"))
    same = {name for name in after if torch.equal(after[name], before[name])}
    assert same == {"model.embed_tokens.weight", "model.norm.weight"}


# Layouts

LAYOUTS = {"replicas": {"replicate": 2}, "shards": {"shard": 2}}
BASES = ("full", "nf4")


def trained_in(group: Group, folder: str, base: str, **sizes: int) -> dict[str, float]:
    """What some steps of an adapter's training came to in a layout."""
    model = tiny_model(vocab_size=40, context=32)
    adapt(model, Adapter(rank=4, kind="dora", base=base), 0)
    where = Path(folder) if group.writes else Path(folder) / "elsewhere"
    running = trainer(where, model, group=group, mesh=Mesh(group, Sizes(**sizes)), steps=4)
    running.checkpoints.folder = Path(folder) / "checkpoints"
    running.train()
    norms = {name: layer.lora_B.norm().item() for name, layer in adapted_layers(model).items()}
    return norms | {"hidden": hidden(model).norm().item()}


def in_every_layout(group: Group, folder: str) -> dict[str, dict[str, float]]:
    return {
        f"{layout} {base}": trained_in(group, f"{folder}/{layout} {base}", base, **sizes)
        for layout, sizes in LAYOUTS.items()
        for base in BASES
    }


def test_an_adapter_learns_the_same_on_several_processes(tmp_path):
    alone = {base: trained_in(Group(), f"{tmp_path}/{base}", base) for base in BASES}
    assert all(norm > 0 for norms in alone.values() for norm in norms.values())
    for found in together(2, "test_adapters_runs:in_every_layout", str(tmp_path)):
        for case, norms in found.items():
            assert norms == pytest.approx(alone[case.split()[1]], rel=1e-3), case
    for base in BASES:
        files = list((tmp_path / f"shards {base}").glob("checkpoints/*/model.*.safetensors"))
        assert len(files) == 2
