"""`inspect data RUN`: prepared data are read whole, and what became of the raw ones is told."""

from __future__ import annotations

import json

import pytest

from doctor_support import called
from fourstage import files
from fourstage.data.prepared import PreparedData
from fourstage.data.store import write_store
from fourstage.reporting.doctor import inspect_run, is_run


@pytest.fixture
def run(tmp_path):
    """A run with a prepared step, as preparation leaves it."""
    prepared = PreparedData(tmp_path / "run")
    for split in ("train", "validation"):
        write_store(prepared.folder / "pretrain" / split, [[1, 2, 3], [4, 5]], vocab_size=10)
    report = {"origin": "files", "train": 2, "sources": {"tea": 30, "sea": 10}}
    prepared.finish("pretrain", "key", report, {})
    counts = {name: {"read": 9, "train": 6, "validation": 1} for name in ("tea", "sea")}
    corpus = {"read": 18, "dropped": {"gopher.words": 4}, "sources": counts, "empty": 0}
    corpus["why"] = {"empty": "nothing but white space"}
    files.write_json(prepared.folder / "report.json", {"corpus": corpus, "pretrain": report})
    return tmp_path / "run"


def test_the_folder_of_a_run_is_told_from_one_of_files(run, tmp_path):
    assert is_run(str(run)) and not is_run(str(tmp_path))


def test_stores_that_are_as_written_are_reported_with_what_was_dropped(run, capsys):
    code, out, err = called(capsys, run)
    assert (code, err) == (0, "")
    assert "pretrain/train" in out and "as written" in out and "damaged" not in out
    assert "dropped.gopher.words" in out and "nothing but white space" in out
    assert "75.0" in out  # the share of a source with 30 of 40 tokens


def test_json_tells_the_same(run, capsys):
    code, out, _ = called(capsys, run, "--json")
    (told,) = json.loads(out)["runs"]
    assert code == 0 and told["path"] == str(run)
    assert [store["tokens"] for store in told["stores"]] == [5, 5]
    assert told["report"]["corpus"]["dropped"] == {"gopher.words": 4}


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "index.json"])
def test_one_changed_byte_is_exit_code_2_and_the_file_is_named(run, capsys, name):
    path = run / "data" / "pretrain" / "train" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    code, out, err = called(capsys, run)
    assert code == 2 and "damaged" in out
    assert f"{path.parent}: " in err and (name in err or name == "index.json")


@pytest.mark.parametrize("name", ["tokens.bin", "index.json", "report.json", "manifest.json"])
def test_a_file_that_is_gone_or_cut_is_told_and_never_a_traceback(run, name):
    path = next((run / "data").rglob(name))
    path.write_bytes(path.read_bytes()[:3])
    assert inspect_run(str(run)).faults
    path.unlink()
    inspect_run(str(run))


def test_a_store_that_the_manifest_names_and_is_gone_is_a_fault(run):
    (run / "data" / "pretrain" / "train" / "index.json").unlink()
    (fault,) = inspect_run(str(run)).faults
    assert "pretrain/train" in fault
