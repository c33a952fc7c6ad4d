"""docs/environments.md has a row for every key of environments and engines, with its default."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from fourstage.environments.building import SHIPPED
from fourstage.recipe.rollouts import EngineSection, EnvironmentSection

PAGE = (Path(__file__).parents[1] / "docs" / "environments.md").read_text("utf-8")


def test_every_key_of_an_environment_is_told_with_its_default():
    chapter = PAGE.split("\n## Keys\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", chapter, re.M))
    fields = EnvironmentSection.model_fields
    assert set(fields) - {"kind"} <= set(told)
    made = EnvironmentSection(kind="guess")
    for name in set(fields) - {"kind"}:
        default = getattr(made, name)
        assert told[name].strip("`") == ("none" if default is None else str(default))


def test_every_shipped_environment_is_told_with_its_options():
    for kind, (_, options) in SHIPPED.items():
        (told,) = re.findall(rf"^\| `{kind}` \| ([^|]*?) \|", PAGE, re.M)
        defaults = dict(re.findall(r"`(\w+)` \(`?([^)`]+)`?\)", told))
        assert {name: yaml.safe_load(value) for name, value in defaults.items()} == options


def test_every_key_of_an_engine_is_told_with_its_default():
    chapter = PAGE.split("\n## Other engines\n")[1]
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", chapter, re.M))
    assert set(told) | {"kind"} == set(EngineSection.model_fields)
    made = EngineSection(kind="ray")
    for name in set(told) - {"kind"}:
        default = getattr(made, name)
        assert told[name] == ("none" if default is None else str(default))
