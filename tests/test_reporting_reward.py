"""The page's part on reward models: what scores rest on, in words and in charts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fourstage.reporting.runfiles import read_run
from fourstage.reporting.sections import judging, reward
from pipeline_support import whole_run


@pytest.fixture
def run(tmp_path_factory, tmp_path) -> Path:
    return shutil.copytree(whole_run(tmp_path_factory.getbasetemp()), tmp_path / "run")


def changed(run: Path, **told) -> Path:
    path = run / "reward" / "results.json"
    results = json.loads(path.read_text())
    results["metrics"] |= told.pop("metrics", {})
    path.write_text(json.dumps(results | told))
    return run


def test_the_page_tells_what_scores_rest_on(run):
    stage = read_run(run)["reward"]
    text = str(reward.section(read_run(run)))
    for words in ("Beyond gold", "by length of the better", "by margin of the better"):
        assert words in text
    assert "off on average" in str(judging.words(stage))
    assert "members of the ensemble" not in text


def test_bins_and_members_are_shown_as_they_were_measured(run):
    row = {"from": 2.0, "to": 2.0, "pairs": 9, "accuracy": 0.75, "interval": [0.5, 1.0]}
    other = {**row, "from": 3.0, "to": 8.0}
    metrics = {"member_agreement": 0.875, "calibration_error": 0.0625}
    stage = read_run(changed(run, accuracy_by_length=[row, other], metrics=metrics))["reward"]
    text = str(judging.binned(stage))
    assert ">2 tokens longer<" in text and ">3 to 8 tokens longer<" in text
    assert "0.875" in str(judging.words(stage)) and "0.06" in str(judging.words(stage))


@pytest.mark.parametrize("told", [None, [], {}, "x", [{"accuracy": "much"}], [3, None]])
def test_bins_that_are_none_are_left_out(run, told):
    changed(run, accuracy_by_length=told, accuracy_by_margin=told)
    assert "tokens longer" not in str(reward.section(read_run(run)))
