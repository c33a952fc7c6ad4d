"""`inspect data`: what files are taken for, and every row that cannot be used."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doctor_support import DIALOGUE, STORY, called, found, lines_file, told
from fourstage.data.corpus import build_corpus
from fourstage.recipe.data import Data
from fourstage.reporting.doctor import Tools, examine, locate


def test_an_entry_tells_format_encoding_shape_and_counts(tmp_path, capsys):
    path = lines_file(tmp_path / "rows.jsonl", DIALOGUE, DIALOGUE, '{"messages": ')
    (entry,) = told(capsys, path)
    wanted = {"format": "jsonl", "encoding": "utf-8", "shape": "messages", "rows": 3, "usable": 2}
    assert {name: entry[name] for name in wanted} == wanted
    assert entry["path"] == str(path)
    assert [set(bad) for bad in entry["bad"]] == [{"line", "why"}]
    assert "data.sft" in entry["stages"]


def test_every_bad_line_is_told_by_its_number_and_the_good_ones_are_kept(tmp_path):
    good = {"text": "a line\u2028of text"}
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(good, ensure_ascii=False),
        '{"text": "comma",}',
        "",
        '{"text": "cut',
        '{"text": "a"} {"text": "b"}',
        '{"text": 3}',
        "null",
        '{"text": NaN}',
        '["no object"]',
        '{"text": "a \\ud800 surrogate"}',
        json.dumps({"text": "long " * 200_000}),
    ]
    content = "\r\n".join(lines).encode() + b'\n{"text": "b\xff"}\n'
    path.write_bytes(b"\xef\xbb\xbf" + content)
    file = found(path)
    assert [bad.line for bad in file.bad] == [2, 4, 5, 6, 7, 8, 9, 12]
    assert len({bad.why for bad in file.bad}) == 8
    assert file.usable == 3 and file.rows == 11


def test_a_row_of_another_shape_than_most_is_bad(tmp_path):
    path = lines_file(tmp_path / "rows.jsonl", DIALOGUE, {"prompt": "Name a river."}, DIALOGUE)
    file = found(path)
    assert file.survey.shape == "messages" and file.usable == 2
    assert [bad.line for bad in file.bad] == [2]


def test_comparisons_without_a_difference_are_bad(tmp_path):
    rows = [
        {"prompt": "Name a river.", "chosen": "The Elbe.", "rejected": "The Alps."},
        {"prompt": "Name a river.", "chosen": "The Elbe.", "rejected": "The Elbe."},
        {"prompt": "Name a river.", "chosen": "The Elbe.", "rejected": ""},
    ]
    file = found(lines_file(tmp_path / "rows.jsonl", *rows))
    assert [bad.line for bad in file.bad] == [2, 3] and file.usable == 1
    assert file.stages == ["data.preferences"]


def test_plain_text_is_documents_as_preparation_cuts_them(tmp_path):
    (tmp_path / "a.txt").write_text("First paragraph.\n\nSecond paragraph.\n")
    (tmp_path / "b.md").write_text("# Heading\n\n" + "\n\n".join([STORY] * 30))
    one, many = examine(locate([str(tmp_path)]).files, Tools())
    assert (one.survey.format, one.survey.shape, one.rows) == ("text", "text", 1)
    assert (many.survey.format, many.survey.shape) == ("markdown", "text") and many.rows > 1
    assert one.stages == ["data.pretrain"]


def test_lines_of_tables_and_lists_are_numbers_of_rows(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"two\nlines"\n""\nlast\n')
    (tmp_path / "b.json").write_text('[\n\n{"text": "one"},\n{"text": 2},\n{"text": "three"}\n]\n')
    table, array = examine(locate([str(tmp_path)]).files, Tools())
    assert [bad.line for bad in table.bad] == [2]
    assert [bad.line for bad in array.bad] == [2] and array.rows == 3


def zipped(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_an_archive_is_one_entry_and_its_junk_is_counted_apart(tmp_path, capsys):
    rows = b'{"text": "one"}\n{"text": "two"}\n'
    members = {"a.jsonl": rows, "in/b.jsonl": rows + b"{\n", "__MACOSX/._a.jsonl": b"\0\1"}
    (entry,) = told(capsys, zipped(tmp_path / "all.zip", members))
    assert (entry["format"], entry["rows"], entry["usable"]) == ("archive", 5, 4)
    assert len(entry["junk"]) == 1 and "__MACOSX/._a.jsonl" in entry["junk"][0]
    (bad,) = entry["bad"]
    assert bad["line"] == 3 and bad["why"].startswith("in/b.jsonl:3: ")


def test_members_of_an_archive_are_judged_each_by_its_own_rows(tmp_path):
    asked = b'{"prompt": "Name a river."}\n'
    talked = json.dumps(DIALOGUE).encode() + b"\n"
    file = found(zipped(tmp_path / "all.zip", {"a.jsonl": talked * 3, "b.jsonl": asked}))
    assert file.usable == 4 and not file.bad
    assert {"data.sft", "data.prompts"} <= set(file.stages)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 100_000
        archive.addfile(info, io.BytesIO(os.urandom(info.size).hex().encode()))
    return out.getvalue()


BROKEN = {
    "cut.jsonl.gz": (cut(gzip.compress(b'{"text": "a"}\n' * 9999)), "gz (damaged)"),
    "cut.tar.gz": (cut(tarred()), "gz (damaged)"),
    "noise.txt": (bytes(range(256)) * 40, "binary"),
    "picture.jsonl": (b"\x89PNG\r\n\x1a\n" + bytes(200), "binary"),
    "mixed.txt": ("ein schöner Tag\n".encode() * 200 + b"\xff\xfe\xfd\n", "text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_of_a_file_that_cannot_be_read_whole_nothing_is_used(tmp_path, capsys, name):
    content, kind = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    (entry,) = told(capsys, tmp_path / name)
    assert (entry["rows"], entry["usable"], entry["shape"]) == (0, 0, None)
    assert [bad["line"] for bad in entry["bad"]] == [0] and entry["bad"][0]["why"]
    assert entry["format"] == kind and entry["stages"] == []


def test_an_empty_file_and_an_empty_folder_are_reports_too(tmp_path, capsys):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    (entry,) = told(capsys, tmp_path / "empty.jsonl")
    assert (entry["rows"], entry["bad"]) == (0, [])
    assert told(capsys, tmp_path / "folder") == []


def test_a_pipe_is_told_and_never_opened(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (entry,) = told(capsys, tmp_path / "pipe")
    assert entry["rows"] == 0 and "neither a file nor a folder" in entry["bad"][0]["why"]


def test_a_tree_is_gone_through_once_and_what_is_no_data_is_named(tmp_path, capsys):
    tree = tmp_path / "tree"
    (tree / "in").mkdir(parents=True)
    lines_file(tree / "in" / "a.jsonl", DIALOGUE)
    (tree / "in" / "loop").symlink_to(tree)
    (tree / "again.jsonl").symlink_to(tree / "in" / "a.jsonl")
    (tree / ".DS_Store").write_bytes(b"\0")
    os.mkfifo(tree / "pipe")
    code, out, _ = called(capsys, tree, tree / "in" / "a.jsonl", "--json")
    report = json.loads(out)
    assert code == 0
    assert [entry["path"] for entry in report["files"]] == [str(tree / "in" / "a.jsonl")]
    passed = {os.path.relpath(path, tree) for path in report["passed"]}
    assert passed == {".DS_Store", "again.jsonl", "in/loop", "pipe"}


def test_a_missing_path_is_exit_code_2_and_all_of_them_are_told(tmp_path, capsys):
    here = lines_file(tmp_path / "here.jsonl", DIALOGUE)
    code, out, err = called(capsys, here, tmp_path / "there.jsonl", tmp_path / "gone.jsonl")
    assert code == 2 and out == ""
    assert "there.jsonl" in err and "gone.jsonl" in err and err.count("\n") == 2


@pytest.mark.parametrize("path", ["", "a" * 5000])
def test_what_no_path_can_be_is_exit_code_2(capsys, path):
    code, out, err = called(capsys, path)
    assert (code, out) == (2, "") and err.startswith("error: inspect data")


def test_a_file_full_of_faults_is_a_report_and_no_failure(tmp_path, capsys):
    path = lines_file(tmp_path / "rows.jsonl", "{}", "[", "nothing")
    code, out, err = called(capsys, path)
    assert (code, err) == (0, "")
    assert f"{path}:2" in out


def test_paths_are_told_as_they_were_given(tmp_path, capsys, monkeypatch):
    (tmp_path / "data" / "in").mkdir(parents=True)
    lines_file(tmp_path / "data" / "in" / "b.jsonl", DIALOGUE)
    lines_file(tmp_path / "a\nb.jsonl", DIALOGUE)
    monkeypatch.chdir(tmp_path)
    paths = [entry["path"] for entry in told(capsys, "./a\nb.jsonl", "data/", "data")]
    assert paths == ["./a\nb.jsonl", "data/in/b.jsonl"]


def test_keys_are_mapped_as_a_recipe_would(tmp_path, capsys):
    path = lines_file(tmp_path / "rows.jsonl", {"q1": "What is it?", "a1": "It is a river."})
    (before,) = told(capsys, path)
    assert before["usable"] == 0 and "q1" in before["bad"][0]["why"]
    (after,) = told(capsys, path, "--map", "question=q1", "--map", "answer=a1")
    assert after["usable"] == 1 and "data.sft" in after["stages"]
    code, _, err = called(capsys, path, "--map", "question")
    assert code == 2 and "OURS=THEIRS" in err
    code, _, err = called(capsys, path, "--map", "qestion=q1")
    assert code == 2 and "'question'" in err


@given(
    st.binary(max_size=300),
    st.sampled_from(["", "[", '{"text": "', "PK\x03\x04", "\x1f\x8b\x08", "PAR1", "ARROW1"]),
    st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".zip", ".gz", ".parquet", ".html"]),
)
def test_any_bytes_under_any_name_end_in_a_report(tmp_path_factory, content, start, suffix):
    path = tmp_path_factory.mktemp("any") / f"file{suffix}"
    path.write_bytes(start.encode("latin-1") + content)
    file = found(path)
    assert file.rows == (0 if file.survey.error else file.usable + len(file.bad))
    assert not file.survey.error or [bad.line for bad in file.bad] == [0]


def test_preparation_leaves_out_the_same_rows(tmp_path):
    words = [f"word{number}" for number in range(1000)]
    texts = ({"text": " ".join(words[at : at + 50])} for at in range(0, 1000, 50))
    rows = [*texts, {"text": ""}, "{", DIALOGUE, '{"text": NaN}', {"prompt": "Name a river."}]
    path = lines_file(tmp_path / "rows.jsonl", *rows)
    data = Data(pretrain=str(path), bad_rows="skip", workers=1)
    build_corpus(data, tmp_path / "corpus")
    listed = (tmp_path / "corpus" / "bad_rows.jsonl").read_text().splitlines()
    prepared = [(row["line"], row["why"]) for row in map(json.loads, listed)]
    assert sorted(prepared) == [tuple(bad) for bad in found(path).bad]
    assert [line for line, _ in sorted(prepared)] == [21, 22, 23, 24, 25]
