"""What going on from a model promises: any supported folder starts any stage, and opens elsewhere.

The folders are of transformers with random weights and no token of a chat.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fourstage.errors import InputError
from fourstage.files import read_json
from fourstage.interchange import load_model, load_tokenizer
from fourstage.interchange.vocabulary import pieces_of
from fourstage.model.config import ModelConfig, RopeScaling
from fourstage.model.families import FAMILIES
from fourstage.pipeline.lineage import section_hash
from fourstage.planning import DataFacts, model_config, resolve
from fourstage.recipe import Recipe, load, recipe_from
from fourstage.stages.context import StageContext
from fourstage.stages.models import language_model, reward_model, starting_model
from fourstage.tokenizer import Tokenizer
from fourstage.training.clock import StageClock
from huggingface_folders import MODELS, logits_apart, save_random
from pipeline_support import go, results, tiny, whole_run
from tiny_models import logits_of
from tokenizer_vocabularies import qwen2

TEXT = "Ada dropped the letter near the station at 2."
PARENT = ModelConfig(
    vocab_size=400, width=32, layers=1, heads=2, kv_heads=2, mlp_width=96, context=64
)
SHORT = [f"{stage}.steps=2" for stage in ("pretrain", "sft", "reward", "rl")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_random(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.getbasetemp())


def from_folder(*overrides: str) -> Recipe:
    """The tiny recipe without what a model to start from decides."""
    recipe = tiny("tokenizer.vocab_size=", "model.context=128", *SHORT, *overrides)
    sizes = dict.fromkeys(("layers", "width", "heads"))
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=sizes)})


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def context_of(
    folder: Path, run: Path, tokenizer: Tokenizer, stage: str = "sft", *overrides: str
) -> StageContext:
    """What a stage that starts from `folder` is given, with nothing prepared."""
    recipe = from_folder(f"{stage}.from={folder}", *overrides)
    parent = load_model(folder).config
    resolved, _ = resolve(recipe, DataFacts(model=parent, vocab_size=tokenizer.vocab_size))
    return StageContext(
        recipe=resolved,
        run=run,
        stage=stage,
        folder=run / stage,
        device=torch.device("cpu"),
        tokenizer=tokenizer,
        parents={"from": folder},
        clock=StageClock(run),
        say=lambda line: None,
    )


# The shape


@pytest.mark.parametrize("name", ["smoke", "quickstart"])
def test_shipped_recipes_can_be_of_any_family_and_are_unchanged_without_one(name):
    for family in FAMILIES:
        recipe, _ = resolve(load(name, [f"model.family={family}"]))
        assert model_config(recipe).family == family
        assert recipe.model.qk_norm == FAMILIES[family].get("qk_norm", True)
    assert resolve(load(name)) == resolve(load(name, ["model.qk_norm=true"]))


def test_a_model_that_no_architecture_can_hold_is_refused_before_anything_is_done(tmp_path):
    recipe = tiny("model.positions=alibi", "model.parallel_residual=true")
    with pytest.raises(InputError, match="cannot be saved"):
        go(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert not (tmp_path / "run" / "data").exists()


def test_the_parent_decides_the_shape_of_every_model_of_the_run():
    asked = {"layers": 4, "width": 128, "window": 7, "family": "gemma2", "params": 10_000_000}
    recipe = recipe_from({"sft": {"from": "folder"}, "model": asked})
    resolved, derived = resolve(recipe, DataFacts(model=PARENT))
    assert model_config(resolved) == PARENT
    assert resolved.model.params == PARENT.parameters()
    said = [str(each) for each in derived]
    assert "model.layers = 1  (of the parent model, not the 4 of the recipe)" in said


def test_a_shape_stays_ones_own_where_only_a_later_stage_starts_from_outside():
    recipe = recipe_from({"rl": {"from": "folder"}, "model": {"layers": 4, "width": 128}})
    resolved, _ = resolve(recipe, DataFacts(model=PARENT))
    assert (resolved.model.layers, resolved.model.width) == (4, 128)


# The context


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_a_scaling_stretches_from_the_context_of_the_parent_by_default(kind):
    model = {"context": 256, "rope_scaling": {"kind": kind}}
    resolved, derived = resolve(
        recipe_from({"pretrain": {"from": "folder"}, "model": model}), DataFacts(model=PARENT)
    )
    scaling = model_config(resolved).rope_scaling
    assert scaling == RopeScaling(kind, factor=4.0, original_context=64)
    assert "model.rope_scaling.factor" in {each.key for each in derived}
    again, _ = resolve(resolved, DataFacts(model=PARENT))
    assert again == resolved


def test_learned_positions_are_not_stretched():
    recipe = recipe_from({"sft": {"from": "folder"}, "model": {"context": 128}})
    parent = dataclasses.replace(PARENT, positions="learned")
    with pytest.raises(InputError, match=r"write model\.context=64 or less"):
        resolve(recipe, DataFacts(model=parent))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_pretraining_goes_on_at_twice_the_context(kind, text, tmp_path):
    short = tiny(f"data.pretrain={text}", "model.context=64", "rl.max_new_tokens=16")
    go(short, tmp_path / "short", only="pretrain")
    base = tmp_path / "short" / "pretrain" / "model"
    longer = from_folder(
        f"pretrain.from={base}", f"data.pretrain={text}", f"model.rope_scaling.kind={kind}"
    )
    said = go(longer, tmp_path / "long", only="pretrain")
    assert any("context changed from 64 tokens" in line and f"{kind} x 2" in line for line in said)
    folder = tmp_path / "long" / "pretrain" / "model"
    config = read_json(folder / "config.json")
    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"]["rope_type"] == kind
    assert config["rope_parameters"]["factor"] == 2.0
    whole = (text / "0.txt").read_text()
    tokenizer = load_tokenizer(folder)
    words = tokenizer.decode(tokenizer.encode(whole)[:128])
    assert len(tokenizer.encode(words)) > 120
    assert logits_apart(folder, words) < 1e-4


def test_a_shorter_context_shortens_the_rows_and_not_the_model(llama, tmp_path):
    ours = load_tokenizer(llama)
    context = context_of(llama, tmp_path, ours, "sft", "model.context=32")
    assert context.recipe.model.context == 32
    assert starting_model(context).config.context == 128


def test_another_base_of_the_angles_is_taken(llama, tmp_path):
    ours = load_tokenizer(llama)
    context = context_of(llama, tmp_path, ours, "pretrain", "model.rope_theta=500000")
    assert starting_model(context).config.rope_theta == 500_000


def test_a_model_from_outside_that_keeps_its_positions_has_the_hash_of_any_context_it_has(
    llama, tmp_path
):
    ours = load_tokenizer(llama)

    def hash_of(*overrides: str) -> str:
        context = context_of(llama, tmp_path, ours, "sft", "sft.batch_tokens=960", *overrides)
        return section_hash(context.recipe, "sft")

    plain = hash_of()
    assert plain == hash_of("model.context=32")
    moved = {plain, hash_of("model.context=256"), hash_of("model.rope_theta=500000")}
    assert len(moved) == 3


def test_a_scaling_that_changed_repeats_a_stage_from_outside(llama, tmp_path):
    recipe = [f"sft.from={llama}", "model.context=256"]
    go(from_folder(*recipe), tmp_path / "run", only="sft")
    said = go(from_folder(*recipe, "model.rope_scaling.kind=yarn"), tmp_path / "run", only="sft")
    assert "sft: run again, since its section of the recipe changed" in said


# The vocabulary


def test_tokens_that_mean_the_same_keep_their_logits_and_others_are_means(llama, tmp_path):
    old, new = load_tokenizer(llama), Tokenizer(qwen2())
    said: list[str] = []
    context = context_of(llama, tmp_path, new)
    context.say = said.append
    before, after = load_model(llama), starting_model(context)
    assert after.config.vocab_size == new.vocab_size
    [line] = said
    assert line.startswith("sft: vocabulary changed from") and "the mean of their pieces" in line

    pieces = pieces_of(new, old, before.config.vocab_size)
    table, rows = before.model.embed_tokens.weight, after.model.embed_tokens.weight
    made = [token for token, each in enumerate(pieces) if len(each) > 1]
    assert made
    for token in made:
        assert torch.allclose(rows[token], table[pieces[token]].mean(dim=0), atol=1e-6)
    twins = {each[0]: token for token, each in enumerate(pieces) if len(each) == 1}
    ids = [each for each in old.encode(TEXT) if each in twins]
    assert len(ids) > 5
    theirs, ours = map(list, zip(*twins.items(), strict=True))
    moved = logits_of(after, [twins[each] for each in ids])[:, ours]
    assert torch.allclose(moved, logits_of(before, ids)[:, theirs], atol=1e-5)


def test_the_same_vocabulary_keeps_every_row_and_gains_those_of_turns(llama, tmp_path):
    before, ours = load_model(llama), load_tokenizer(llama)
    after = starting_model(context_of(llama, tmp_path, ours))
    rows = before.config.vocab_size
    assert after.config.vocab_size == ours.vocab_size == rows + len(ours.added)
    assert torch.equal(after.model.embed_tokens.weight[:rows], before.model.embed_tokens.weight)


def test_a_run_trains_a_vocabulary_of_its_own_for_a_model_from_elsewhere(llama, text, tmp_path):
    recipe = from_folder(
        f"pretrain.from={llama}",
        f"data.pretrain={text}",
        "tokenizer.train=true",
        "tokenizer.vocab_size=320",
    )
    said = go(recipe, tmp_path / "run", only="pretrain")
    assert any("vocabulary changed from 601 to 320 tokens" in line for line in said)
    folder = tmp_path / "run" / "pretrain" / "model"
    assert read_json(folder / "config.json")["vocab_size"] == 320
    assert logits_apart(folder, TEXT) < 1e-4
    measured = results(tmp_path / "run", "pretrain")["metrics"]
    assert measured["validation_bits_per_byte"] < measured["validation_bits_per_byte_before"]


def test_a_run_takes_the_vocabulary_that_is_named(llama, text, tmp_path):
    qwen2().save(str(tmp_path / "tokenizer.json"))
    recipe = from_folder(
        f"pretrain.from={llama}",
        f"data.pretrain={text}",
        f"tokenizer.path={tmp_path / 'tokenizer.json'}",
    )
    go(recipe, tmp_path / "run", only="pretrain")
    size = Tokenizer.load(tmp_path / "tokenizer.json").vocab_size
    assert load_model(tmp_path / "run" / "pretrain" / "model").config.vocab_size == size


def test_a_size_that_an_adopted_vocabulary_does_not_have_is_told(llama, tmp_path):
    recipe = from_folder(f"sft.from={llama}", "tokenizer.vocab_size=400")
    said = go(recipe, tmp_path / "run", only="sft")
    assert any(line.startswith("tokenizer.vocab_size=400 is not used") for line in said)


def test_training_a_vocabulary_and_naming_one_is_refused():
    with pytest.raises(InputError, match="leave one of the two out"):
        recipe_from({"tokenizer": {"train": True, "path": "folder"}})


def test_models_of_the_run_and_reward_models_of_another_vocabulary_are_refused(
    finished, llama, tmp_path
):
    context = context_of(llama, tmp_path, load_tokenizer(llama))
    shutil.copytree(finished / "pretrain", tmp_path / "pretrain")
    with pytest.raises(InputError, match="made with another tokenizer"):
        language_model(tmp_path / "pretrain" / "model", context)
    with pytest.raises(InputError, match="made with another tokenizer"):
        reward_model(finished / "reward" / "model", context)


# Any folder, any stage


@pytest.mark.parametrize("family", MODELS)
def test_a_folder_of_any_family_is_fine_tuned_and_opens_elsewhere(family, tmp_path):
    start = save_random(tmp_path / "start", family)
    said = go(from_folder(f"sft.from={start}"), tmp_path / "run", only="sft")
    assert any("tokenizer: adopted" in line and "special tokens added" in line for line in said)
    folder = tmp_path / "run" / "sft" / "model"
    assert logits_apart(folder, TEXT) < 1e-4
    template = (folder / "chat_template.jinja").read_text()
    assert "<|assistant|>" in template
    card = (folder / "README.md").read_text()
    assert (" a token), 2 layers" in card) == (family == "mixtral")


def test_a_folder_becomes_a_reward_model_and_a_policy_that_it_judges(llama, tmp_path):
    asked = [f"Tell me of {name}." for name in ("Ada", "Bela", "Cora", "Dino")]
    pairs = [
        {"prompt": prompt, "chosen": f"{number} is {TEXT}", "rejected": f"No, {number}."}
        for prompt in asked
        for number in range(6)
    ]
    prompts = [{"prompt": f"{prompt} {number}"} for prompt in asked for number in range(6)]
    files = [
        f"data.preferences={lines(tmp_path / 'pairs.jsonl', pairs)}",
        f"data.prompts={lines(tmp_path / 'prompts.jsonl', prompts)}",
        "data.pretrain=",
        "data.sft=",
    ]
    go(from_folder(f"reward.from={llama}", *files), tmp_path / "judge", only="reward")
    judge = tmp_path / "judge" / "reward" / "model"
    recipe = from_folder(f"rl.from={llama}", f"rl.reward_model={judge}", *files)
    go(recipe, tmp_path / "run", only="rl")
    assert logits_apart(tmp_path / "run" / "rl" / "model", TEXT) < 1e-4
    assert results(tmp_path / "run", "rl")["metrics"]["kl"] > 0


def test_a_policy_with_more_positions_than_its_reward_model_is_judged_at_all_of_them(
    finished, tmp_path
):
    chat, scorer = finished / "sft" / "model", finished / "reward" / "model"
    recipe = tiny(f"rl.from={chat}", f"rl.reward_model={scorer}", "model.context=256", *SHORT)
    go(recipe, tmp_path / "run", only="rl")
    assert load_model(tmp_path / "run" / "rl" / "model").config.context == 256
