"""Documents are cut from text without loss."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.documents import GATHERED, cut

texts = st.text(alphabet="ab .!。\n", max_size=6000) | st.text(max_size=300)


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
