"""Constraints are kept or broken, whatever the language, and rows that hold none are told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import InputError
from fourstage.rewards.constraints import COUNTS, Constraints, keeps
from fourstage.rewards.contracts import Item


@pytest.mark.parametrize(
    ("text", "name", "value", "kept"),
    [
        ("one two three", "words", {"exactly": 3}, True),
        ("one two three", "words", 3, True),
        ("don't stop well-known 4 things", "words", 5, True),
        ("我有三只猫", "words", 5, True),
        ("我有 three 只猫", "words", {"at_most": 4}, False),
        ("", "words", {"at_least": 1}, False),
        ("One. Two! Three?", "sentences", 3, True),
        ("It costs 3.50 euros. Yes", "sentences", 2, True),
        ('He said "no." Then he went.', "sentences", 2, True),
        ("一。二！三？", "sentences", 3, True),
        ("a\n\nb\n \nc", "paragraphs", 3, True),
        ("a\nb\n\n", "lines", 2, True),
        ("- a\n* b\n2. c\nd", "bullets", 3, True),
        ("abc", "characters", {"at_least": 2, "at_most": 3}, True),
        ("The Sea is wide", "keywords", ["sea"], True),
        ("The seaside", "keywords", ["sea"], False),
        ("sea and sun", "keywords", ["sea", "sun"], True),
        ("sea", "keywords", ["sea", "sun"], False),
        ("大海很大", "keywords", ["大海"], True),
        ("no salt here", "forbidden", ["salt"], False),
        ("salty", "forbidden", ["salt"], True),
        ("Sea, sea; SEA", "times", {"word": "sea", "exactly": 3}, True),
        ("Sea, sea", "times", {"word": "sea", "at_least": 3}, False),
        ("Once upon a time", "starts_with", "once upon", True),
        ("At once", "starts_with", "once", False),
        ("The end.", "ends_with", "The end.", True),
        ("The end. No.", "ends_with", "The end.", False),
        ("ALL UP 3!", "case", "upper", True),
        ("ALL Up", "case", "upper", False),
        ("all down 你好", "case", "lower", True),
        ("a b", "without", [","], True),
        ("a, b", "without", [","], False),
        ('"quoted"', "quoted", True, True),
        ("「引」", "quoted", True, True),
        ('"not', "quoted", True, False),
        ('```json\n{"a": 1}\n```', "json", True, True),
        ("a: 1", "json", True, False),
    ],
)
def test_a_constraint_is_kept_or_broken(text, name, value, kept) -> None:
    assert keeps(text, name, value) == kept
    (found,) = Constraints({name: value}).score([Item("?", f"<think>x, y</think>\n{text}\n")])
    assert found.score == float(kept)


@given(st.lists(st.sampled_from(["sun", "sea", "élan", "7"]), max_size=30))
def test_words_are_counted_however_they_are_set_apart(words) -> None:
    for between in (" ", "\n", ", ", "... "):
        assert COUNTS["words"](between.join(words)) == len(words)


def test_all_constraints_count_or_the_share_of_them() -> None:
    row = {"rules": json.dumps([{"words": 2}, {"keywords": ["sea"], "case": "lower"}])}
    item = Item("?", "Sea wind", columns=row)
    assert Constraints(column="rules").score([item])[0].score == 0.0
    partial = Constraints(column="rules", partial=True).score([item])[0]
    assert partial.score == pytest.approx(2 / 3) and "case=lower" in partial.note
    both = Constraints({"words": 3}, column="rules", partial=True)
    assert both.score([item])[0].score == pytest.approx(2 / 4)


def test_constraints_of_the_recipe_do_without_those_of_a_row() -> None:
    reward = Constraints({"words": 2})
    for truth in (None, "not JSON", "72", '["a"]'):
        assert reward.score([Item("?", "two words", truth=truth)])[0].score == 1.0
    assert reward.unfit(Item("?", "")) == ""


def test_rows_of_ifeval_are_translated() -> None:
    columns = {
        "instruction_id_list": [
            "length_constraints:number_words",
            "keywords:frequency",
            "punctuation:no_comma",
        ],
        "kwargs": [
            {"relation": "less than", "num_words": 4},
            {"keyword": "sea", "relation": "at least", "frequency": 2},
            {},
        ],
    }
    reward = Constraints()
    for text, score in (("sea sea", 1.0), ("sea, sea", 0.0), ("sea", 0.0), ("sea sea a b", 0.0)):
        assert reward.score([Item("?", text, columns=columns)])[0].score == score
    columns["instruction_id_list"] = ["language:response_language"] * 3
    assert "not known here" in reward.unfit(Item("?", "", columns=columns))
    columns["instruction_id_list"] = ["keywords:existence"] * 3
    assert "lacks its arguments" in reward.unfit(Item("?", "", columns=columns))
    assert "one length" in reward.unfit(Item("?", "", columns={**columns, "kwargs": []}))


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ({"wrods": 3}, "did you mean 'words'"),
        ({"words": {"at_lest": 3}}, "did you mean 'at_least'"),
        ({"words": {"at_least": "3"}}, "no whole number"),
        ({"words": {"at_least": -1}}, "no whole number"),
        ({"words": {}}, "no bound"),
        ({"words": "3"}, "write a mapping"),
        ({"keywords": "sea"}, "no list of words"),
        ({"keywords": [""]}, "no list of words"),
        ({"case": "title"}, "upper or lower"),
        ({"starts_with": 3}, "no text"),
        ({"times": {"at_least": 3}}, "names no word"),
        ({"json": "yes"}, "true or false"),
    ],
)
def test_a_constraint_that_is_none_is_told(constraints, said) -> None:
    with pytest.raises(InputError, match=said):
        Constraints(constraints).start(print)
    item = Item("?", "x", columns={"rules": constraints})
    assert said in Constraints(column="rules").unfit(item)
    (found,) = Constraints(column="rules").score([item])
    assert found.score is None and said in found.fault


def test_a_row_without_constraints_is_told() -> None:
    for truth in (None, "{}", "[]"):
        assert "no constraints" in Constraints().unfit(Item("?", "", truth=truth))
    assert "no JSON" in Constraints().unfit(Item("?", "", truth="be brief"))
    assert "no mapping" in Constraints().unfit(Item("?", "", truth="[3]"))
