"""The page that a run is shown on."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fourstage.errors import InputError
from fourstage.reporting import build_report
from fourstage.reporting.runfiles import STAGES
from reporting_run import KINDS, PROMPTS, write_run

ADDRESS = re.compile(
    r"""(?:src|href|action|data|poster|url|@import)\s*[=(]?\s*["']?\s*(?:https?:)?//""", re.I
)
VOID = {"meta", "br", "line", "path", "circle", "rect", "polyline"}


class Tags(HTMLParser):
    """Collects tags and checks that each is closed by its own."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(run: Path) -> tuple[str, Tags]:
    text = build_report(run).read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return text, tags


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[str, Tags]:
    return page_of(write_run(tmp_path_factory.mktemp("runs") / "quickstart"))


def test_the_page_has_every_part_of_a_finished_run(whole):
    text, tags = whole
    for key in (
        "pretraining",
        "sft",
        "reward",
        "rl",
        "samples",
        "plan",
        "data",
        "lineage",
        "numbers",
    ):
        assert f'<section id="{key}">' in text
    words = "".join(tags.text)
    assert "Over-optimisation" in words
    assert "Diversity" in words
    assert "Calibration" in words
    for kind in KINDS:
        assert kind in words
    assert "not finished" not in words


def test_the_four_stage_table_holds_this_runs_numbers(whole):
    words = "".join(whole[1].text)
    for expected in (
        "96\u202fk documents",
        "3.69\u202fM tokens",
        "4\u202fmin",
        "2.6\u202f×\u202f10¹³",
    ):
        assert expected in words


def test_every_headline_number_stands_beside_its_interval(whole):
    words = "".join(whole[1].text)
    for value in ("1.389", "0.926", "0.742", "0.713", "0.846"):
        assert re.search(re.escape(value) + r"\s*\[\d\.\d+, \d\.\d+\]", words), value


def test_the_entropy_floor_is_drawn(whole):
    text = whole[0]
    assert 'class="reference"' in text
    assert ">entropy</text>" in text


def test_nothing_is_fetched_from_outside(whole):
    text, tags = whole
    assert not ADDRESS.search(text)
    assert not {"script", "img", "link", "iframe", "object", "embed"} & tags.names
    assert "default-src &#x27;none&#x27;" in text


def test_the_page_knows_no_absolute_path(tmp_path):
    text, _ = page_of(write_run(tmp_path / "quickstart"))
    assert str(tmp_path) not in text


def test_the_same_run_gives_the_same_page(tmp_path):
    first, _ = page_of(write_run(tmp_path / "a"))
    second, _ = page_of(write_run(tmp_path / "b"))
    assert first == second


def test_a_sample_can_inject_no_html(tmp_path):
    run = write_run(tmp_path / "run")
    evil = "</dd><script>alert(1)</script><img src=//x.example/y onerror=alert(1)>&amp;\0\x1b"
    rows = [{"step": s, "prompt": PROMPTS[0] + evil, "completion": evil} for s in (0, 10)]
    for stage in STAGES:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (run / stage / "samples.jsonl").write_text(lines, encoding="utf-8")
    results = json.loads((run / "rl" / "results.json").read_text())
    results["metrics"][f"gold_reward/{evil}"] = 0.5
    (run / "rl" / "results.json").write_text(json.dumps(results))
    recipe = (
        (run / "recipe.yaml").read_text().replace("name: quickstart", f"name: {json.dumps(evil)}")
    )
    (run / "recipe.yaml").write_text(recipe)
    text, tags = page_of(run)
    assert not {"script", "img"} & tags.names
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x1b" not in text and "\x00" not in text


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_a_run_that_is_not_finished_is_shown_as_far_as_it_goes(tmp_path, stages):
    text, _ = page_of(write_run(tmp_path / "run", stages))
    assert "This run is not finished" in text
    shown = [f'<section id="{key}">' in text for key in ("pretraining", "sft", "reward", "rl")]
    assert shown == [index <= stages for index in range(4)]


@pytest.mark.parametrize(
    "missing",
    [
        "recipe.yaml",
        "run.json",
        "plan.json",
        "data/report.json",
        *(f"{stage}/{name}" for stage in STAGES for name in ("metrics.jsonl", "results.json")),
    ],
)
def test_a_missing_or_broken_file_costs_only_its_own_part(tmp_path, missing):
    run = write_run(tmp_path / "run")
    (run / missing).write_text('{"cut": [')
    page_of(run)
    (run / missing).unlink()
    page_of(run)


def test_values_of_unexpected_types_do_not_break_the_page(tmp_path):
    run = write_run(tmp_path / "run")
    odd = {"metrics": {"kl": None, "gold_reward": "high", "task_success": [1]}, "intervals": 3}
    (run / "rl" / "results.json").write_text(json.dumps(odd | {"calibration": [1, None]}))
    (run / "rl" / "metrics.jsonl").write_text('{"step": 0, "reward": null}\n[1]\n"x"\n{"step"')
    (run / "reward" / "results.json").write_text(json.dumps({"metrics": {}, "calibration": [7]}))
    (run / "plan.json").write_text(json.dumps({"stages": [1, {"stage": "sft", "seconds": "x"}]}))
    (run / "run.json").write_text(json.dumps({"stages": [], "versions": 1}))
    (run / "data" / "report.json").write_text(json.dumps({"a": [{"b": {"c": {"d": {"e": 1}}}}]}))
    page_of(run)


def test_a_row_cut_in_the_middle_of_a_file_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "sft" / "metrics.jsonl"
    path.write_text('{"step": 0, "lo\n' + path.read_text())
    assert "sft/metrics.jsonl: 1 unreadable rows were passed over" in page_of(run)[0]


def test_the_report_of_no_run_is_an_input_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="give"):
            build_report(folder)


def test_sources_are_shown_with_their_shares_and_epochs(tmp_path):
    run = write_run(tmp_path / "run")
    read = {"books": {"read": 12, "train": 10, "validation": 1}, "web": {"read": 7, "train": 5}}
    data = {"corpus": {"sources": read}, "pretrain": {"sources": {"books": 4321, "web": 1234}}}
    (run / "data" / "report.json").write_text(json.dumps(data))
    results = json.loads((run / "pretrain" / "results.json").read_text())
    results["mixture"] = [{"source": "books", "share": 0.75, "epochs": 2.5, "tokens": 10}]
    (run / "pretrain" / "results.json").write_text(json.dumps(results))
    text, _ = page_of(run)
    for shown in ("books", "11", "4\u202f321", "75.0", "2.50", "1\u202f234"):
        assert shown in text


def test_data_made_from_the_text_are_named(tmp_path):
    run = write_run(tmp_path / "run")
    recipe = (
        (run / "recipe.yaml")
        .read_text()
        .replace("pretrain: world", "pretrain: books/en, sft: my.jsonl")
    )
    (run / "recipe.yaml").write_text(recipe)
    words = "".join(page_of(run)[1].text)
    assert "Made from the text itself: comparisons, prompts." in words
    assert "demonstrations of my.jsonl" in words
