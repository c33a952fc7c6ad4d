"""`inspect data`: what files are taken for, and what is wrong with them."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from fourstage.cli.app import main
from fourstage.reporting.doctor import examine, print_findings


def test_each_kind_of_row_is_named_with_what_it_can_be_used_for(tmp_path):
    rows = [
        {"text": "one"},
        {"prompt": "p", "completion": "c"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "only"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = examine([path])
    assert found.kinds == {"text": 1, "dialogue": 1, "comparison": 2, "prompt": 1}
    assert found.repeats == 1
    out = Console(file=io.StringIO(), width=140)
    assert print_findings([found], out) == 0
    text = out.file.getvalue()
    assert "data.preferences" in text and "prompt, chosen, rejected" in text


def test_every_bad_row_is_told_with_its_line_and_the_good_ones_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n{"text": 3}\nnot json\n{"nothing": 1}\n')
    (found,) = examine([path])
    assert found.kinds == {"text": 1}
    assert sorted(fault.split(":")[1] for fault in found.faults) == ["2", "3", "4"]


def test_plain_text_is_counted_in_documents(tmp_path):
    (tmp_path / "a.txt").write_text("First paragraph.\n\nSecond paragraph.\n")
    (found,) = examine([tmp_path])
    assert found.kinds["text"] == 1
    assert found.characters > 30


@pytest.mark.parametrize("arguments", [["inspect", "data", "absent.txt"], ["report", "absent"]])
def test_what_does_not_exist_is_exit_code_2_in_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and "absent" in error


def test_a_malformed_file_is_exit_code_2(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "data", str(path)])
    assert stop.value.code == 2
    assert f"{path}:1" in "".join(capsys.readouterr().out.split("\n"))
