"""Rows of JSON lines, lists and tables: each good one kept, each bad one named with its reason."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.reading import (
    BadRow,
    RawFile,
    RawRow,
    Unreadable,
    inspect_file,
    lists,
    read_blocks,
    read_rows,
    read_rows_and_faults,
)
from fourstage.errors import InputError

SURROGATE = json.dumps({"text": "\ud800"})


def _file(folder, content: bytes | str, name: str) -> RawFile:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return RawFile(path, name)


def _rows(folder, content: bytes | str, name: str = "a.jsonl") -> list[RawRow | BadRow]:
    return list(read_rows_and_faults(_file(folder, content, name)))


FAULTS = {
    '{"text": "x",}': "trailing comma",
    '{"a": [1, 2,]}': "trailing comma",
    '{"text": "x': "cut",
    '{"text": "x"': "cut",
    '{"text": "x"} {"text": "y"}': "two values on one line",
    '{"text": "x"}, {"text": "y"}': "two values on one line",
    '{"text": "x"} x': "text after the value",
    "[1, 2]": "not a list",
    "null": "not null",
    "7": "not a number",
    "true": "not true or false",
    '{"n": NaN}': "NaN",
    '{"n": -Infinity}': "Infinity",
    '{"n": 1e999}': "too large a number",
    '{"n": ' + "9" * 100_000 + "}": "more digits",
    '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}": "nested deeper",
    '{"a": ' * 300 + "1" + "}" * 300: "nested deeper",
    "{'text': 'x'}": "single quotes",
    '{"text": "a\tb"}': "control character",
    '{"text": "\\q"}': "backslash",
    '{"text": "\0"}': "control character",
    "words": "broken JSON",
    '{"text" "x"}': "broken JSON",
}
GOOD = [
    '{"text": "one"}',
    '{"text": "line\u2028separator\u0085"}',
    SURROGATE,
    '{"text": "first", "text": "last"}',
    json.dumps({"text": "long " * 200_000}),
    '"a bare string"',
    '  {"text": "spaced"}\t',
    '\ufeff{"text": "a mark inside"}',
    "{}",
]


@pytest.mark.parametrize("line", FAULTS, ids=lambda line: line[:24])
def test_a_broken_line_is_named_and_its_neighbours_are_kept(tmp_path, line: str) -> None:
    rows = _rows(tmp_path, f'{{"text": "one"}}\r\n{line}\n\n{{"text": "two"}}\n')
    good = [row.value for row in rows if isinstance(row, RawRow)]
    assert good == [{"text": "one"}, {"text": "two"}]
    assert [row.line for row in rows] == [1, 2, 4]
    assert isinstance(rows[1], BadRow) and FAULTS[line] in rows[1].why
    assert rows[1].where.endswith("a.jsonl:2") and len(rows[1].why) < 200


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_good_lines_are_kept_however_odd(tmp_path, end: str, mark: str) -> None:
    rows = _rows(tmp_path, mark + end.join(GOOD))
    assert all(isinstance(row, RawRow) for row in rows) and len(rows) == len(GOOD)
    assert rows[3].value == {"text": "last"} and rows[2].value == {"text": "\ud800"}
    assert rows[1].value["text"] == "line\u2028separator\u0085"


def test_a_file_whose_first_lines_are_broken_is_still_lines(tmp_path) -> None:
    rows = _rows(tmp_path, '{"text": "cut\n{"text": 1,}\n{"text": "good"}')
    assert [type(row) for row in rows] == [BadRow, BadRow, RawRow]


def test_faults_are_told_together_when_all_was_read(tmp_path) -> None:
    file = _file(tmp_path, '{"a": 1}\n' + "x\n" * 30, "a.jsonl")
    rows = read_rows(file)
    assert next(rows).value == {"a": 1}
    with pytest.raises(InputError) as raised:
        next(rows)
    assert len(raised.value.faults) == 6 and "25 more" in raised.value.faults[-1]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_told_by_content_not_by_name(tmp_path, name: str, indent: int | None) -> None:
    rows = [{"text": "one", "n": [1, {"x": None}]}, {"text": "two"}, {"text": "three"}]
    texts = [json.dumps(rows, indent=indent), json.dumps({"v": 1, "rows": rows}, indent=indent)]
    texts += ["\n".join(json.dumps(row, indent=indent) for row in rows)]
    if name.endswith("l"):  # an object on a line of JSON lines is a row
        del texts[1 : 2 if indent is None else 1]
    for text in texts:
        assert [row.value for row in _rows(tmp_path, text, name)] == rows
    listed = _rows(tmp_path, json.dumps(rows, indent=indent), name)
    assert [row.line for row in listed] == [1, 2, 3]


def test_an_object_of_messages_is_one_row(tmp_path) -> None:
    row = {"id": 1, "messages": [{"role": "user", "content": "Hi"}], "tools": [{"name": "x"}]}
    assert [each.value for each in _rows(tmp_path, json.dumps(row, indent=1), "a.json")] == [row]


def test_two_lists_of_rows_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(Unreadable, match=r"several lists of rows \(train, test\)"):
        _rows(tmp_path, json.dumps({"train": [{"a": 1}], "test": [{"a": 2}]}), "a.json")


@pytest.mark.parametrize("scalar", ["7", '"words"', "null", "-1.5e3"])
def test_a_lone_scalar_is_no_file_of_rows(tmp_path, scalar: str) -> None:
    with pytest.raises(Unreadable, match="no rows"):
        _rows(tmp_path, scalar, "a.json")


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ('[{"n": 1}, {"n" 2}, {"n": 3}]', [1, 3], [2]),
        ('[{"n": 1},\n {"n": 2},\n {"n": ', [1, 2], [3, 4]),
        ('[{"n": 1}, {"n": 2}', [1, 2], [3]),
        ('[{"n": 1}, 7, null, {"n": 4},]', [1, 4], [2, 3]),
        ('{"rows": [{"n": 1}, {"n": NaN}, {"n": 3}], "more": 1}', [1, 3], [2]),
        ('[{"n": 1}] [{"n": 2}]', [1, 2], []),
        ('[{"n": 1}] tail', [1], [1]),
    ],
)
def test_each_row_of_a_list_is_judged_alone(tmp_path, text: str, good: list, bad: list) -> None:
    rows = _rows(tmp_path, text, "a.json")
    assert [row.value["n"] for row in rows if isinstance(row, RawRow)] == good
    assert [row.line for row in rows if isinstance(row, BadRow)] == bad


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(["text", "a", "b"]), values, min_size=1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(objects, min_size=1, max_size=8),
    is_list=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    size=st.integers(1, 200),
)
def test_what_was_written_is_read_in_blocks_of_any_size(
    tmp_path_factory, rows: list, is_list: bool, indent: int | None, size: int
) -> None:
    if is_list:
        text = json.dumps(rows, indent=indent)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    folder = tmp_path_factory.mktemp("rows")
    file = _file(folder, text.encode("utf-8", "replace"), "a.json" if is_list else "a.jsonl")
    blocks = list(read_blocks(file, size))
    # Lone surrogates cannot be written as they are, only escaped.
    expected = rows if is_list else [json.loads(line) for line in text.split("\n")]
    found = [row for block in pickle.loads(pickle.dumps(blocks)) for row in block.rows()]
    assert [row.value for row in found] == expected
    assert [row.line for row in found] == list(range(1, len(rows) + 1))
    assert [block.last for block in blocks] == [False] * (len(blocks) - 1) + [True]


@pytest.mark.parametrize("form", ["[%s]", '{"version": 1, "data": [%s], "more": {}}', "%s"])
def test_a_long_text_of_json_is_read_with_little_memory(tmp_path, monkeypatch, form: str) -> None:
    monkeypatch.setattr(lists, "_WHOLE", 1 << 20)
    row = json.dumps({"text": "word " * 400})
    joint = ",\n" if "[" in form else "\n"
    file = _file(tmp_path, form % joint.join([row] * 15_000), "a.json")
    assert file.path.stat().st_size > 30_000_000
    tracemalloc.start()
    last = 0
    for block in read_blocks(file, 1 << 18):
        for each in block.rows():
            assert isinstance(each, RawRow)
            last = each.line
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last == 15_000 and peak < 16_000_000


cells = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12) | st.sampled_from(
    ["a,b", 'say "hi"', "two\nlines", "x;y", "t\tab", ""]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1), st.sampled_from(",;\t"), st.booleans())
def test_tables_are_read_as_the_csv_module_wrote_them(
    tmp_path_factory, rows: list, mark: str, has_bom: bool
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "answer"), *rows])
    content = ("\ufeff" if has_bom else "") + out.getvalue()
    folder = tmp_path_factory.mktemp("table")
    file = _file(folder, content, "a.tsv" if mark == "\t" else "a.csv")
    found = [row.value for row in read_rows(file)]
    assert found == [{"prompt": a, "answer": b} for a, b in rows]


def test_a_wrong_row_of_a_table_is_named_by_its_number(tmp_path) -> None:
    text = 'prompt,answer\na,b\nc\n"open,d\ne,f\ng,h,i\nj,k\n'
    rows = _rows(tmp_path, text, "a.csv")
    assert [row.line for row in rows if isinstance(row, BadRow)] == [2, 3, 5]
    good = [row.value["prompt"] for row in rows if isinstance(row, RawRow)]
    assert good == ["a", "e", "j"]


def test_a_table_without_its_suffix_is_told_and_verse_is_not(tmp_path) -> None:
    table = "prompt\tlabel\n" + "some words, here\tgood\n" * 5
    assert inspect_file(_file(tmp_path, table, "a.txt")).format == "tsv"
    verse = "I came, I saw\nyou came, you saw\nwe came, we saw\n"
    assert inspect_file(_file(tmp_path, verse, "b.txt")).format == "text"
    assert inspect_file(_file(tmp_path, "[1] A note, and {braces}\n", "c.txt")).format == "text"
