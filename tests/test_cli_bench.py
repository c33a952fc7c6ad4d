"""`fourstage bench` on a command line."""

from __future__ import annotations

import json

import pytest

from fourstage.cli import bench
from pipeline_support import call, recipe_file


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(bench, "_SECONDS", 0.02)


def test_json_is_printed_alone(tmp_path, capsys):
    code, out, err = call(capsys, "bench", recipe_file(tmp_path), "--stage", "sft", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert list(told["stages"]) == ["sft"] and told["recipe"] == "tiny"
    parts = told["stages"]["sft"]["parts_seconds"]
    assert sum(parts.values()) == pytest.approx(told["stages"]["sft"]["profiled_step_seconds"])


def test_tables_name_every_part_and_fit_a_terminal(tmp_path, capsys):
    code, out, err = call(capsys, "bench", recipe_file(tmp_path))
    assert code == 0, err
    for word in ("of ceiling", "head and loss", "backward", "rollout", "activations", "planned"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 100


def test_no_data_are_needed(tmp_path, capsys):
    missing = "data.pretrain=/nowhere/at/all"
    words = ("--stage", "pretrain", "--stage", "reward")
    code, out, err = call(capsys, "bench", recipe_file(tmp_path), missing, *words)
    assert code == 0, err
    assert "pretrain" in out and "reward" in out and "rollout" not in out


def test_an_unknown_stage_is_answered_with_the_nearest(tmp_path, capsys):
    code, _, err = call(capsys, "bench", recipe_file(tmp_path), "--stage", "rewards")
    assert code == 2 and "did you mean 'reward'?" in err
