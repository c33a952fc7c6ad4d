"""docs/rewards.md has a row for every key of every kind of reward, with its default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fourstage.recipe import recipe_from
from fourstage.recipe.numbers import parse_number
from fourstage.recipe.rewards import PARTS_BY_KIND, RewardPart
from fourstage.rewards.constraints import NAMES

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text("utf-8")
_ROW = re.compile(r"^\| `(\w+)` \| ([^|]*?) ?\|", re.M)
_SHARED = {"kind", "name", "weight", "fault_score", "only"}


def chapter(kind: str) -> str:
    for part in PAGE.split("\n## ")[1:]:
        if kind in re.split(r" and |\n", part)[:2]:
            return part.split("\n| constraint |")[0]
    raise AssertionError(f"no chapter of {kind}")


def test_every_part_has_the_keys_that_are_told() -> None:
    assert {key for key, _ in _ROW.findall(chapter("Every part"))} == _SHARED
    assert set(RewardPart.model_fields) == _SHARED


@pytest.mark.parametrize("kind", PARTS_BY_KIND)
def test_every_key_of_a_kind_has_a_row_and_its_default(kind) -> None:
    told = dict(_ROW.findall(chapter(kind)))
    fields = {k: f for k, f in PARTS_BY_KIND[kind].model_fields.items() if k not in _SHARED}
    shared_page = {"regex": {"column"}, "format": {"column"}, "missing_end": {"most", "buffer"}}
    assert set(fields) <= set(told) <= set(fields) | shared_page.get(kind, set())
    for key, field in fields.items():
        if kind == "format" or field.default is None or field.is_required():
            continue
        said = told[key].strip("`")
        if isinstance(field.default, bool | str):
            assert said.lower() == str(field.default).lower(), key
        else:
            assert parse_number(said) == field.default, key


def test_every_constraint_is_told() -> None:
    table = PAGE.split("| constraint |")[1].split("\n\n")[0]
    assert set(NAMES) <= set(re.findall(r"`(\w+)`", table))


def test_the_recipe_of_the_page_loads() -> None:
    import yaml

    section = re.search(r"```yaml\n(.*?)```", PAGE, re.S)
    assert section
    recipe = recipe_from(yaml.safe_load(section[1]))
    assert [part.kind for part in recipe.rl.rewards] == ["math", "format", "length"]
