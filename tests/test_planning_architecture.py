"""What a recipe's options of the model promise."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from fourstage.errors import InputError
from fourstage.model.config import ModelConfig, RopeScaling
from fourstage.model.families import FAMILIES
from fourstage.planning import model_config, resolve
from fourstage.planning.facts import DataFacts
from fourstage.recipe import load, recipe_from
from fourstage.reporting.numbers import SPACE, parameters

PLAIN = ("model.qk_norm=", "model.params=")


def resolved(*overrides: str, facts: DataFacts | None = None):
    return resolve(load("smoke", [*PLAIN, *overrides]), facts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_a_shorthand_for_its_options(family):
    recipe, derived = resolved(f"model.family={family}")
    config = model_config(recipe)
    assert config.family == family
    for name, value in FAMILIES[family].items():
        if name == "embedding_multiplier":
            assert config.embedding_multiplier == config.width**0.5
        elif name not in ("window", "full_every"):
            assert getattr(config, name) == value, name
    assert any(config.windows) == ("window" in FAMILIES[family])
    told = {each.key for each in derived if each.rule == f"of the family {family}"}
    assert told == {f"model.{name}" for name in FAMILIES[family]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resolved_recipe_is_read_back_as_the_same_model(family):
    recipe, _ = resolved(f"model.family={family}", "model.rope_scaling.kind=linear")
    again, derived = resolve(recipe_from(yaml.safe_load(recipe.to_yaml())))
    assert again == recipe and model_config(again) == model_config(recipe)
    assert not [each for each in derived if each.key.startswith("model.")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parent_gives_every_option_that_is_left_out(family):
    parent = model_config(resolved(f"model.family={family}")[0])
    recipe, _ = resolve(load("own-text", ["model.params="]), DataFacts(model=parent))
    config = model_config(recipe)
    assert config == dataclasses.replace(parent, vocab_size=config.vocab_size)


def test_what_is_written_wins_over_the_family():
    recipe, _ = resolved("model.family=gemma2", "model.logit_softcap=0", "model.window=7")
    config = model_config(recipe)
    assert config.logit_softcap == 0 and config.attention_softcap == 50
    assert config.windows == (7, 0)


def test_options_left_out_are_those_of_a_llama_with_normed_queries():
    config = model_config(resolved()[0])
    usual = ModelConfig(
        **{
            name: getattr(config, name)
            for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "mlp_width")
        },
        context=config.context,
        tie_embeddings=config.tie_embeddings,
    )
    assert config == usual


def test_a_longer_context_is_scaled_from_the_one_before():
    recipe, _ = resolved(
        "model.context=1024", "model.rope_scaling.kind=yarn", "model.rope_scaling.factor=4"
    )
    assert model_config(recipe).rope_scaling == RopeScaling("yarn", 4.0, 256)


def test_windows_are_a_list_on_the_command_line_too():
    assert model_config(resolved("model.windows=64,0")[0]).windows == (64, 0)
    with pytest.raises(InputError, match="windows"):
        model_config(resolved("model.windows=64")[0])


def test_experts_come_with_their_losses_and_others_without():
    mixed, plain = (resolved(*extra)[0] for extra in (["model.family=mixtral"], []))
    assert mixed.model.routing_losses == (0.01, 0.001)
    assert plain.model.routing_losses == (0.0, 0.0)
    assert resolved("model.experts=4", "model.balance_loss=0")[0].model.routing_losses[0] == 0


def test_what_a_token_meets_is_told_beside_all():
    sizes = {"vocab_size": 10, "width": 8, "layers": 1, "heads": 2, "kv_heads": 2, "context": 8}
    mixed = ModelConfig(**sizes, mlp_width=1000, experts=4, experts_per_token=1)
    expert = 3 * 8 * 1000
    assert mixed.active_parameters() == mixed.parameters() - 3 * expert
    assert parameters(mixed) == f"96.5{SPACE}k parameters (24.5{SPACE}k a token)"
    assert parameters(ModelConfig(**sizes, mlp_width=1000)).endswith("k parameters")
