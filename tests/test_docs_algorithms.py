"""docs/algorithms.md tells every algorithm and preference loss as the code has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fourstage.objectives.algorithms import ALGORITHMS
from fourstage.objectives.preferences import PREFERENCES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text("utf-8")


def row(name: str, chapter: str) -> list[str]:
    text = PAGE.split(f"\n## {chapter}\n")[1].split("\n## ")[0]
    found = re.search(rf"^\| `{re.escape(name)}` \|(.*)\|$", text, re.M)
    assert found, name
    return [cell.strip().replace("`", "") for cell in found[1].split("|")]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_a_section_and_its_row_is_that_of_the_table(name):
    assert f"\n### {name}\n" in PAGE
    told = ALGORITHMS[name]
    clips = "-" if told.surrogate == "plain" else f"{told.clip_low:g}, {told.clip_high:g}"
    kl = f"{told.kl}, {told.kl_estimator}, {told.kl_coefficient:g}"
    expected = [
        told.advantage,
        told.scale,
        told.ratio,
        told.surrogate,
        clips,
        told.aggregation,
        kl if told.kl_coefficient else "none",
    ]
    assert row(name, "Policy optimisation") == expected


@pytest.mark.parametrize("name", PREFERENCES)
def test_the_row_of_a_preference_loss_has_its_defaults(name):
    told = PREFERENCES[name]
    numbers = [f"beta {told.beta:g}"]
    numbers += [f"e {told.label_smoothing:g}"] * bool(told.label_smoothing)
    numbers += [f"gamma {told.gamma:g}"] * bool(told.gamma)
    numbers += [f"NLL {told.nll_coefficient:g}"] * bool(told.nll_coefficient)
    _, defaults, reference = row(name, "Preferences")
    assert defaults == ", ".join(numbers)
    assert reference == ("yes" if told.has_reference else "no")


def test_functions_and_files_that_are_named_exist():
    folder = ROOT / "src" / "fourstage" / "objectives"
    code = "".join(path.read_text("utf-8") for path in folder.glob("*.py"))
    for file in re.findall(r"`(\w+\.py)`", PAGE):
        assert (folder / file).is_file() or (ROOT / "tests" / file).is_file(), file
    table = PAGE.split("What each word does, in code:")[1].split("\n### ")[0]
    for name in re.findall(r"`(?:\w+\.)?(\w+)`(?:,|;| in)", table):
        assert re.search(rf"(?:def|class) {name}\b", code), name
    for name in (
        "dead_groups",
        "overlong_penalties",
        "leave_out",
        "with_mismatches",
        "clipped_value_loss",
        "leave_one_out_advantages",
    ):
        assert f"`{name}" in PAGE and f"def {name}(" in code
