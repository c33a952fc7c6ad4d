"""docs/algorithms.md and the pages under it tell every algorithm and loss as the code has it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import doc_lines
from fourstage.objectives.algorithms import ALGORITHMS
from fourstage.objectives.preferences import PREFERENCES
from fourstage.planning import resolve
from fourstage.recipe import RL, load
from fourstage.recipe.preference import COMPARING, DISTILLING, learns_otherwise

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "algorithms.md").read_text("utf-8")
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(doc_lines.PAGES.glob("*.md"))}
# Names that cannot name a file, and a page of two.
_STEMS = {"reinforce++": "reinforce-plus-plus", "reinforce++-baseline": "reinforce-plus-plus"}
NAMES = (*ALGORITHMS, *COMPARING, *DISTILLING)
HEADINGS = [
    "Run",
    "Formula",
    "In the code",
    "Settings",
    "When",
    "What to watch",
    "Measured here",
    "Traps",
]
_SETTING = re.compile(r"^\| (`rl\.[^|]+`) \| ([^|]+?) \|", re.M)


def row(name: str, chapter: str) -> list[str]:
    text = PAGE.split(f"\n## {chapter}\n")[1].split("\n## ")[0]
    found = re.search(rf"^\| `{re.escape(name)}` \|(.*)\|$", text, re.M)
    assert found, name
    return [cell.strip().replace("`", "") for cell in found[1].split("|")]


def page_of(name: str) -> str:
    return PAGES[_STEMS.get(name, name)]


def chapter_of(page: str, heading: str) -> str:
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_row_of_an_algorithm_is_that_of_the_table(name):
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
    everything = PAGE + "".join(PAGES.values())
    for file in re.findall(r"`(\w+\.py)`", everything):
        assert (folder / file).is_file() or (ROOT / "tests" / file).is_file(), file
    table = PAGE.split("What each word does, in code:")[1].split("\n## ")[0]
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
        assert f"`{name}" in everything and f"def {name}(" in code


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_has_a_page_which_the_index_leads_to_and_which_tells_how_it_is_run(name):
    stem = _STEMS.get(name, name)
    listed = chapter_of(PAGE, "The pages")
    assert f"(algorithms/{stem}.md)" in listed
    assert f"`{name}`" in listed or f"[{name}]" in listed
    assert re.search(
        rf"^fourstage run quickstart rl\.algorithm={re.escape(name)}( |$)", page_of(name), re.M
    )


def test_there_is_no_page_of_anything_else():
    assert set(PAGES) == {_STEMS.get(name, name) for name in NAMES} | {"online"}


@pytest.mark.parametrize("stem", PAGES)
def test_a_page_has_its_name_one_sentence_and_all_headings_in_their_order(stem):
    page = PAGES[stem]
    titles = {stem: stem for stem in PAGES} | {"reinforce-plus-plus": "reinforce++"}
    title, _, first = page.split("\n")[:3]
    assert title == f"# {titles[stem]}"
    assert first.endswith(".") and re.search(r"(19|20)\d\d", first)
    assert re.findall(r"^## (.+)$", page, re.M) == HEADINGS
    assert all("```" in chapter_of(page, heading) for heading in ("Run", "Formula"))
    assert "metrics.md#rl" in chapter_of(page, "What to watch")


def test_links_to_code_lead_to_the_lines_of_what_they_name():
    every = [link for stem in PAGES for link in doc_lines.links(doc_lines.PAGES / f"{stem}.md")]
    stale = [str(link) for link in every if link.line != link.right]
    assert not stale, "\n".join([*stale, "`python tests/doc_lines.py` writes the right lines"])


@pytest.mark.parametrize("stem", PAGES)
def test_a_page_links_its_row_its_loss_and_what_trains_it(stem):
    path = doc_lines.PAGES / f"{stem}.md"
    linked = {(Path(link.file).parent.name, Path(link.file).name) for link in doc_lines.links(path)}
    assert len(re.findall(r"\]\([^)]*\.py", PAGES[stem])) == len(doc_lines.links(path))
    rows = {("objectives", "algorithms.py"), ("objectives", "preferences.py")}
    assert linked & (rows | {("recipe", "preference.py")})
    assert {file for folder, file in linked if folder == "stages"} & {
        "policy.py",
        "preference.py",
        "distilling.py",
    }
    assert any(folder == "objectives" for folder, _ in linked) or stem == "online"


def test_stale_lines_are_told_and_mended(tmp_path):
    code = ["X = 1", "", "class A:", "    def b(self): ...", "", "T = (", "    Algorithm("]
    code += ['        "c++",', "    ),", ")", ""]
    (tmp_path / "code.py").write_text("\n".join(code))
    page = tmp_path / "page.md"
    page.write_text(
        "[`A.b`](code.py#L9) [`X`](code.py#L1) [`c++`](code.py#L2) [`gone`](code.py#L3)"
    )
    told = doc_lines.mend(tmp_path)
    assert page.read_text() == (
        "[`A.b`](code.py#L4) [`X`](code.py#L1) [`c++`](code.py#L8) [`gone`](code.py#L3)"
    )
    assert told == [
        "page.md: `A.b` is linked to code.py#L9 and stands on line 4",
        "page.md: `c++` is linked to code.py#L2 and stands on line 8",
        "page.md: `gone` is linked to code.py#L3, and that file has no gone",
    ]


def test_links_between_the_pages_lead_somewhere():
    texts = {doc_lines.PAGES / f"{stem}.md": text for stem, text in PAGES.items()}
    for path, text in {DOCS / "algorithms.md": PAGE, **texts}.items():
        for target, anchor in re.findall(r"\]\(([\w./+-]*)(?:#([\w-]+))?\)", text):
            file = (path.parent / target).resolve() if target else path
            assert file.is_file(), (path.name, target)
            if anchor and file.suffix == ".md":
                assert anchor in _anchors(file.read_text("utf-8")), (path.name, target, anchor)


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def commands(page: str) -> list[list[str]]:
    """Overrides of each command of a page that runs the quickstart."""
    found = re.findall(r"^fourstage run quickstart (.+)$", page, re.M)
    return [line.split() for line in found]


@cache
def resolved(*overrides: str) -> RL:
    return resolve(load("quickstart", [*overrides, "device=cpu"]))[0].rl


@pytest.mark.parametrize("stem", PAGES)
def test_the_commands_of_a_page_are_taken(stem):
    for overrides in commands(PAGES[stem]):
        resolved(*overrides)


def settings(page: str) -> dict[str, Any]:
    """key -> what the page says that the quickstart has; several of a row stand in their order."""
    found = {}
    for keys, cell in _SETTING.findall(chapter_of(page, "Settings")):
        names = re.findall(r"`([\w.]+)`", keys)
        values = [each.strip(" `") for each in re.split("[:;]", cell)[0].split(",")]
        assert len(names) == len(values), keys
        found |= dict(zip(names, values, strict=True))
    return found


def _value_of(section: RL, key: str) -> Any:
    """A key of `rl`; of what the algorithm's row has and the section does not change, the row's."""
    found: Any = section
    for part in key.split(".")[1:]:
        found = getattr(found, part)
    if found is None and not learns_otherwise(section):
        found = getattr(section.row(), key.split(".")[1], None)
    return found


@pytest.mark.parametrize("stem", PAGES)
def test_settings_of_the_quickstart_are_those_that_its_rules_give(stem):
    section, told = resolved(*commands(PAGES[stem])[0]), settings(PAGES[stem])
    assert len(told) >= 5
    for key, value in told.items():
        found = _value_of(section, key)
        # YAML takes 3e-4 for a word.
        said: Any = None if value == "none" else yaml.safe_load(value)
        assert (float(said) if isinstance(found, float) else said) == found, key


def test_a_page_tells_what_the_table_of_the_index_says_was_measured():
    rows = re.findall(r"^\| `([^`]+)` \| \d\.\d+ \[.*$", chapter_of(PAGE, "Choosing"), re.M)
    assert rows
    names = {"dpo rl.online=true": "online"} | {name: _STEMS.get(name, name) for name in NAMES}
    measured = {names[name]: line for name, line in _measured(PAGE).items()}
    assert set(measured) == {names[name] for name in rows}
    for stem, page in PAGES.items():
        told = _measured(chapter_of(page, "Measured here"))
        assert list(told.values()) == ([measured[stem]] if stem in measured else [])
        assert told or "Not measured in the quickstart" in page
        assert "algorithms.md#measured" in page


def _measured(text: str) -> dict[str, str]:
    """name -> its row, of a table of gold rewards."""
    return {
        found[1]: found[0] for found in re.finditer(r"^\| `([^`]+)` \| \d\.\d+ \[.*$", text, re.M)
    }
