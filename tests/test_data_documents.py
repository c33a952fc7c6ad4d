"""Documents: cut without loss, kept once, held out by content."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_texts import english
from fourstage.data.documents import GATHERED, cut, keep, read_documents
from fourstage.data.reading import find_files
from fourstage.errors import InputError

texts = st.text(alphabet="ab .!。\n", max_size=6000) | st.text(max_size=300)


def _read(path, document: str = "auto", key: str | None = None) -> list[str]:
    return list(read_documents(find_files(path, "data.pretrain")[0], document, key))


@given(texts, st.sampled_from(["auto", "file", "paragraph", "line"]))
def test_cutting_loses_nothing_but_white_space(text: str, document: str) -> None:
    assert "".join("".join(cut(text, document)).split()) == "".join(text.split())


@given(texts)
def test_gathered_documents_stay_within_their_limit(text: str) -> None:
    assert all(len(part) <= GATHERED for part in cut(text, "auto"))


def test_auto_gathers_whole_paragraphs() -> None:
    paragraphs = [f"{letter * 900}." for letter in "abcde"]
    assert list(cut("\n\n".join(paragraphs), "auto")) == [
        "\n\n".join(paragraphs[:2]),
        "\n\n".join(paragraphs[2:4]),
        paragraphs[4],
    ]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    sentence = "月照青山，风过孤舟。"
    parts = list(cut(sentence * 500, "auto"))
    assert all(part.endswith("。") for part in parts) and "".join(parts) == sentence * 500


def test_files_of_every_kind_are_read(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("from text")
    (tmp_path / "b.md").write_bytes("\ufefffrom\r\nmarkdown".encode())
    (tmp_path / "c.jsonl").write_text('{"text": "from lines"}\n\n"a bare string"\n')
    (tmp_path / "d.json").write_text(json.dumps([{"text": ["from", "a list"]}], indent=2))
    (tmp_path / "e.json").write_text('{"text": "lines in .json"}\n{"text": "and more"}')
    (tmp_path / "f.json").write_text(json.dumps({"rows": [{"text": "below a key"}]}))
    with gzip.open(tmp_path / "g.jsonl.gz", "wt") as file:
        file.write('{"messages": [{"role": "user", "content": "Hi"}]}')
    (tmp_path / "h.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "i.txt").write_text("from below")
    assert _read(tmp_path) == [
        "from text",
        "from\nmarkdown",
        "from lines",
        "a bare string",
        "from\na list",
        "from below",
        "lines in .json",
        "and more",
        "below a key",
        "Hi",
    ]
    assert find_files(tmp_path, "data.pretrain")[1] == ["h.png"]


def test_a_named_key_is_read_where_a_row_has_it(tmp_path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"author": "x", "paragraphs": ["一行", "二行"]}]))
    (tmp_path / "b.jsonl").write_text('{"text": "plain"}')
    assert _read(tmp_path, key="paragraphs") == ["一行\n二行", "plain"]
    with pytest.raises(InputError, match=r"data\.key=paragraphs"):
        _read(tmp_path / "a.json")
    with pytest.raises(InputError, match="no row of the data has this key"):
        _read(tmp_path / "b.jsonl", key="paragraphs")


def test_several_paths_are_read_and_named_apart(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    found, _ = find_files([tmp_path / "one", tmp_path / "two"], "data.pretrain")
    assert [file.name for file in found] == ["0/a.txt", "1/a.txt"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.txt", b"text\0with nul", "binary"),
        ("a.txt", "中文".encode("gb18030"), "not UTF-8"),
        ("a.txt.gz", b"\x1f\x8bbroken", "broken gzip"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', r"a\.jsonl:2: 'text' is a int"),
        ("a.json", b'[\n{"text": "x"},\n{"text" "y"}]', r"a\.json:3: broken JSON"),
        ("a.json", b'[\n{"text": "x"},\n7]', r"a\.json:3: a row is an object"),
        ("a.json", b'[{"text": "x"}', r"a\.json:1: broken JSON"),
    ],
)
def test_unreadable_files_and_rows_are_named_with_their_line(
    tmp_path, name: str, content: bytes, fault: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=fault):
        _read(tmp_path)


def test_many_faults_are_told_together_and_counted(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n' * 30)
    with pytest.raises(InputError) as raised:
        _read(tmp_path)
    assert len(raised.value.faults) == 6 and "25 more" in raised.value.faults[-1]


def test_missing_and_empty_places_are_refused(tmp_path) -> None:
    (tmp_path / "texts").mkdir()
    with pytest.raises(InputError, match="nothing to read in this folder"):
        _read(tmp_path / "texts")
    with pytest.raises(InputError, match=r"no such file or folder; did you mean '.*texts'"):
        _read(tmp_path / "text")


def test_duplicates_and_empty_documents_are_dropped_and_counted() -> None:
    documents = english(60).split("\n\n")
    kept = keep([*documents, documents[3], "  \n", documents[7] + "\n"], 0.2, "here")
    assert sorted(kept.train + kept.validation) == sorted(documents)
    assert kept.counts["duplicate"] == 2 and kept.counts["empty"] == 1


def test_a_document_stays_on_its_side_when_others_join() -> None:
    documents = english(200).split("\n\n")
    few, many = keep(documents[:80], 0.2, "here"), keep(documents, 0.2, "here")
    assert set(few.validation) <= set(many.validation) and set(few.train) <= set(many.train)


@given(st.integers(4, 40), st.floats(0.001, 0.5))
def test_something_is_always_held_out_and_something_left(count: int, share: float) -> None:
    documents = [f"{i} " * 600 for i in range(count)]
    try:
        kept = keep(documents, share, "here")
    except InputError as error:
        assert "nothing to train on" in str(error)
    else:
        assert kept.train and kept.validation


@pytest.mark.parametrize(
    ("documents", "fault"),
    [
        ([], "no text"),
        (["", "  "], "no text"),
        (["tiny"], "too little"),
        (["one long document " * 1000], "data.document=paragraph"),
    ],
)
def test_too_little_text_is_refused(documents: list[str], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        keep(documents, 0.02, "data.pretrain=here")
