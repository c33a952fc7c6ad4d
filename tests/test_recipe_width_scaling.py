"""What `model.width_scaling=mup` derives: the rate of the base, at any width."""

from __future__ import annotations

import pytest

from fourstage.errors import InputError
from fourstage.planning import model_config, resolve
from fourstage.recipe import recipe_from


def resolved(**model):
    recipe, derived = resolve(recipe_from({"data": {"pretrain": "world"}, "model": model}))
    return recipe, {value.key: value for value in derived}


def test_rates_are_those_of_the_base_at_every_width() -> None:
    rates, standard = [], []
    for width in (128, 256, 512):
        recipe, derived = resolved(layers=4, width=width, width_scaling="mup")
        stages = (recipe.pretrain, recipe.sft, recipe.reward, recipe.rl)
        rates.append([stage.learning_rate for stage in stages])
        standard.append(resolved(layers=4, width=width)[0].pretrain.learning_rate)
        assert recipe.model.base_width == 128 and recipe.model.width_ratio == width / 128
        assert recipe.model.head_width == 32 and recipe.model.tie_embeddings is False
        assert "carried on by muP" in derived["pretrain.learning_rate"].rule
    assert rates[0][0] == pytest.approx(rates[2][0], rel=0.1)
    assert standard[0] > 1.5 * standard[2]


def test_without_it_nothing_is_scaled() -> None:
    recipe, derived = resolved(layers=4, width=256)
    assert recipe.model.width_ratio == 1.0 and recipe.model.base_width is None
    assert "muP" not in derived["pretrain.learning_rate"].rule


def test_the_shape_is_one_that_other_programs_know() -> None:
    recipe, _ = resolved(layers=2, width=64, width_scaling="mup", base_width=32)
    config = model_config(recipe)
    assert config.logit_multiplier == 1.0 and config.attention_scale == config.head_width**-0.5


@pytest.mark.parametrize(
    "model, said",
    [
        ({"base_width": 64}, "width_scaling=mup"),
        ({"width_scaling": "mup", "tie_embeddings": True}, "tie_embeddings=false"),
    ],
)
def test_what_does_not_go_together_is_refused(model, said) -> None:
    with pytest.raises(InputError, match=said):
        recipe_from({"model": model})
