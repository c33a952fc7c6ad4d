"""docs/training.md has a row for every key of training, with its default, and none for another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fourstage.interchange.families import FAMILIES
from fourstage.planning.architecture import DEFAULTS
from fourstage.recipe.loading import fields_below
from fourstage.recipe.numbers import parse_seconds
from fourstage.recipe.schema import Model, Pretrain, Recipe
from fourstage.training import events
from fourstage.training.settings import ON_SPIKE

DOCS = Path(__file__).parents[1] / "docs"
_ROW = re.compile(r"^\| `([\w.]+)` \| ([^|]*?) \|", re.M)
# Values that have tables of their own.
_NOT_KEYS = {*ON_SPIKE, *FAMILIES}


def page(name: str = "training") -> str:
    return (DOCS / f"{name}.md").read_text("utf-8")


def chapter(title: str) -> str:
    """What stands under a heading of the second level."""
    return page().split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> dict[str, str]:
    """key -> default, of the tables of a chapter."""
    found = dict(_ROW.findall(chapter(title)))
    return {key: default for key, default in found.items() if key not in _NOT_KEYS}


def keys_of(section: str) -> set[str]:
    return {key.removeprefix(section) for key in fields_below() if key.startswith(section)}


@pytest.mark.parametrize(
    ("title", "section"),
    [
        ("Keys of a stage", "pretrain."),
        ("Keys of model", "model."),
        ("Keys of compute", "compute."),
        ("Keys of parallel", "parallel."),
    ],
)
def test_every_key_has_a_row_and_every_row_is_of_a_key(title, section):
    assert set(rows(title)) == keys_of(section)


def test_the_keys_of_replay_are_told():
    told = rows("Going on from a model")
    assert set(told) == {f"data.replay.{key}" for key in keys_of("data.replay.")}


@pytest.mark.parametrize(
    ("title", "section"),
    [
        ("Keys of a stage", Pretrain()),
        ("Keys of compute", Recipe().compute),
        ("Keys of model", Model()),
    ],
)
def test_defaults_that_are_fixed_are_those_of_the_schema(title, section):
    fixed = {key: _default(section, key) for key in rows(title)}
    wrong = {
        key: (told, fixed[key])
        for key, told in rows(title).items()
        if fixed[key] is not None and not _says(told, fixed[key])
    }
    assert not wrong


def _default(section: BaseModel, key: str) -> Any:
    """The default of a key, also in a section that is left out; None where a rule gives it."""
    first, _, rest = key.partition(".")
    if rest:
        field = type(section).model_fields[first]
        inner = next(kind for kind in field.annotation.__args__ if kind is not type(None))
        default = inner.model_fields[rest].get_default()
        return default if isinstance(default, bool | int | float | str) else None
    if isinstance(section, Model) and first in DEFAULTS and first not in ("windows", "family"):
        return DEFAULTS[first]
    return getattr(section, "source_model" if first == "from" else first, None)


def _says(told: str, default: Any) -> bool:
    told = told.strip("`")
    if isinstance(default, bool):
        return told == str(default).lower()
    if isinstance(default, str):
        return told == default
    return parse_seconds(told) == default


def test_every_reaction_event_and_family_is_told():
    watched = chapter("What is watched")
    assert set(ON_SPIKE) <= set(re.findall(r"^\| `(\w+)` \|", chapter("Keys of a stage"), re.M))
    listed = re.search(r"`event` is (.*?);", events.__doc__ or "", re.S)
    assert listed
    for event in re.findall(r"`(\w+)`", listed[1]):
        assert f"| `{event}` |" in watched
    for name, family in FAMILIES.items():
        assert f"| `{name}` | `{family.model_type}` |" in chapter("Keys of model")


def test_every_number_that_is_watched_is_told():
    from fourstage.training.watching import Watch

    named = re.findall(r"\w+_\w+", (Watch.__doc__ or "").split("Looks every")[0])
    told = chapter("What is watched")
    for name in {*named, "update_ratio_max"}:
        assert f"| `{name}` |" in told


def test_every_field_of_a_recipe_stands_in_a_table_of_the_recipes_or_of_training():
    told = set(re.findall(r"`([\w.]+)`", page("recipes") + page()))
    parts = {key: key.split(".") for key in fields_below()}
    missing = [key for key, path in parts.items() if not {".".join(path[1:]), path[-1], key} & told]
    assert not missing


def test_links_between_these_pages_lead_somewhere():
    for name in ("training", "parallel", "recipes"):
        for target, anchor in re.findall(r"\]\(([\w./-]*\.md)?(?:#([\w-]+))?\)", page(name)):
            file = DOCS / (target or f"{name}.md")
            assert file.is_file(), (name, target)
            if anchor:
                assert anchor in _anchors(file.read_text("utf-8")), (name, target, anchor)


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
