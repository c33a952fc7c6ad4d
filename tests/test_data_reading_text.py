"""Plain text, markdown and pages: all of the text, cut where paragraphs end."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.reading import RawFile, inspect_file, read_blocks, read_text
from fourstage.data.reading.html import page_text

PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {a: b}</style></head><body>
<nav><a href="/">Home</a></nav><script>if (a < b) { document.write("<p>no</p>") }</script>
<h1>The&nbsp;river</h1><p>It runs <b>east</b> &amp; west,
over a > b.</p><ul><li>one<li>two</ul>
<table><tr><th>who</th><th>what</th></tr><tr><td>a</td><td>b c</td></tr></table>
<pre>def f():
    return 1</pre><img alt="x > y" src=a.png><!-- not <p>said</p> --><footer>Imprint</footer>
</body></html>"""


def _file(folder, content: bytes, name: str = "a.txt") -> RawFile:
    path = folder / name
    path.write_bytes(content)
    return RawFile(path, name)


@settings(max_examples=80, deadline=None)
@given(
    st.text(st.sampled_from("ab \n\r。中"), max_size=600).filter(lambda text: text.strip()),
    st.integers(1, 80),
)
def test_blocks_together_are_the_text(tmp_path_factory, text: str, size: int) -> None:
    file = _file(tmp_path_factory.mktemp("text"), text.encode())
    blocks = list(read_blocks(file, size))
    whole = text.replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(block.text or "" for block in blocks) == whole
    assert [block.last for block in blocks] == [False] * (len(blocks) - 1) + [True]
    at = 0
    for block in blocks:
        assert block.first == whole[:at].count("\n") + 1
        at += len(block.text or "")


def test_blocks_end_with_paragraphs(tmp_path) -> None:
    text = "\n\n".join(f"paragraph {n} " + "word " * (n % 50) for n in range(2000))
    *blocks, _ = read_blocks(_file(tmp_path, text.encode()), 10_000)
    assert len(blocks) > 10 and all(block.text and block.text[-2:] == "\n\n" for block in blocks)


def test_a_page_is_read_for_what_it_says(tmp_path) -> None:
    expected = (
        "The river\n\nIt runs east & west, over a > b.\n\none\ntwo\n\nwho\twhat\na\tb c\n\n"
        "def f():\n    return 1\n\n"
    )
    for name in ("a.html", "a.txt", "a"):
        file = _file(tmp_path, PAGE.encode(), name)
        assert inspect_file(file).format == "html"
        assert read_text(file) == expected


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_page_does_not_depend_on_the_pieces_it_comes_in(size: int) -> None:
    pieces = [PAGE[at : at + size] for at in range(0, len(PAGE), size)]
    assert "".join(page_text(pieces)) == "".join(page_text([PAGE]))


@pytest.mark.parametrize("tag", ["nav", "aside", "footer"])
def test_what_stands_behind_an_open_menu_is_kept(tag: str) -> None:
    said = "".join(page_text([f"<body><{tag}>menu<p>The whole text.</p></body>"]))
    assert "The whole text." in said


@pytest.mark.parametrize(
    "unit", ["<!--", "<a ", "<a '", '<a "', "<", "</", "<!", "<script>", "<p", "&", "<nav>", "<?"]
)
def test_broken_markup_takes_no_more_than_its_length(unit: str) -> None:
    page = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    for _ in page_text([page[:400_000], page[400_000:]]):
        pass
    assert time.perf_counter() - start < 10


@given(st.text(st.sampled_from("<>/!-ab \"'=&;pnavscript"), max_size=200), st.integers(1, 9))
def test_any_markup_is_read_without_a_fault(text: str, size: int) -> None:
    "".join(page_text(text[at : at + size] for at in range(0, len(text), size)))


@pytest.mark.parametrize(("name", "kind"), [("a.md", "markdown"), ("a.txt", "text"), ("a", "text")])
def test_names_break_ties(tmp_path, name: str, kind: str) -> None:
    assert inspect_file(_file(tmp_path, b"# Title\n\nwords", name)).format == kind


def test_an_empty_file_is_an_empty_text(tmp_path) -> None:
    for content in (b"", b"\n \n", b"\xef\xbb\xbf"):
        file = _file(tmp_path, content, "a.jsonl")
        assert inspect_file(file).format == "empty"
        assert [block.text for block in read_blocks(file)] == [""]
