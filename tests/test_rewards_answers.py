"""Answers are found where they are told, and compared as what they are."""

from __future__ import annotations

import json
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import InputError
from fourstage.rewards.apart import Apart
from fourstage.rewards.code.blocks import code_of
from fourstage.rewards.constraints import COUNTS, Constraints
from fourstage.rewards.contracts import Item, Outcome, Reward
from fourstage.rewards.extraction import chosen_letter, last_number, told_answer
from fourstage.rewards.matching import Choice, Exact, Pattern
from fourstage.rewards.maths import Formulas, Numbers
from fourstage.rewards.numbers import exact_value
from fourstage.rewards.schemas import JsonSchema, parsed_json

# Of the shape of GSM8K's: https://arxiv.org/abs/2110.14168
WORKED = "A crate holds 1,250*3=<<1250*3=3750>>3,750 nails.\nHalf is 1,875.\n#### 1,875"


def score(reward: Reward, response: str, truth: object = None, **columns) -> float | None:
    item = Item("?", response, truth=truth, columns=columns)  # ty: ignore[invalid-argument-type]
    (found,) = reward.score([item])
    assert not found.fault
    return found.score


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("-3", -3),
        ("− 3", -3),
        ("1,250", 1250),
        ("12,345,678.90", Fraction("12345678.9")),
        ("72.00", 72),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("3 1/2", Fraction(7, 2)),
        ("-3 1/2", Fraction(-7, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac12", Fraction(-1, 2)),
        (r"\$1{,}250".replace("{,}", ","), 1250),
        ("$5", 5),
        ("5%", 5),
        (r"5\%", 5),
        ("72 clips.", 72),
        (r"72\text{ clips}", 72),
        ("x = 7", 7),
        ("10 m/s", 10),
        ("**42**", 42),
        ("5 千克", 5),
    ],
)
def test_a_number_is_read_exactly(text, value) -> None:
    assert exact_value(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "no", "72 or 73", "2+3", "5-3", "1,25", "10^6", r"\sqrt{2}", r"2\pi", "2x", "2 pi", "3/0",
     "2 million", "1e5", "1e999999999", "9" * 5000, "1.2.3", "--3", "5 and a half of 3", "½"],
)  # fmt: skip
def test_what_is_more_than_a_number_is_none(text) -> None:
    begun = time.monotonic()
    assert exact_value(text) is None
    assert time.monotonic() - begun < 0.5


@given(st.fractions(max_denominator=9999), st.sampled_from(["{}", "{} apples", "${}", "x={}"]))
def test_every_fraction_is_read_back(value, form) -> None:
    assert exact_value(form.format(value)) == value


@given(st.integers(-(10**12), 10**12))
def test_thousands_may_be_set_apart_by_commas(value) -> None:
    assert exact_value(f"{value:,}") == exact_value(str(value)) == value


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (WORKED, "1,875"),
        ("2+2 is 4.\nThe answer is 4.", "4"),
        ("So it is.\n\nThe final answer is: **4**.\n", "4"),
        ("Answer: 4 apples", "4 apples"),
        ("the answer = -4", "-4"),
        (r"\boxed{3} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("<think>\\boxed{9}</think>\n<answer> 4 </answer>", "4"),
        ("#### 3\n#### 4", "4"),
        (r"The answer is 5, so \boxed{4}", "4"),
        ("The answer is 4.\nI am sure.", None),
        ("It is 4", None),
        ("<think>The answer is 4</think>", None),
        ("####", None),
        (r"\boxed{4", None),
    ],
)
def test_the_answer_is_what_stands_at_a_place_for_it(response, answer) -> None:
    assert told_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("First 3, then 1,250.50.", "1,250.50"),
        ("3 of 4, or 3/4", "3/4"),
        ("minus -7!", "-7"),
        ("$12", "$12"),
        ("10-7=3", "3"),
        ("v2 and B12", None),
        ("none", None),
    ],
)
def test_the_last_number_is_found_as_it_stands(response, number) -> None:
    assert last_number(response) == number


@pytest.mark.parametrize(
    ("response", "strict", "lenient"),
    [
        (WORKED, 1.0, 1.0),
        (r"\boxed{1875.0}", 1.0, 1.0),
        ("The answer is $1,875.", 1.0, 1.0),
        ("It must be 1875 nails, I think.", 0.0, 1.0),
        ("1875 of 2000", 0.0, 0.0),
        ("The answer is 1876, or 1875.", 0.0, 0.0),
        (r"1875, so \boxed{1876}", 0.0, 0.0),
        ("no idea", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_strict_takes_told_answers_alone_and_lenient_the_last_number(
    response, strict, lenient
) -> None:
    for extraction, expected in (("strict", strict), ("lenient", lenient)):
        for truth in ("1,875", "1875", WORKED):
            assert score(Numbers(extraction), response, truth) == expected
        assert score(Numbers(extraction, "answer"), response, "7", answer=WORKED) == expected


def test_a_tolerance_is_a_share_of_the_truth() -> None:
    reward = Numbers(tolerance=0.01)
    assert score(reward, "#### 99", "100") == 1.0
    assert score(reward, "#### -101", "-100") == 1.0
    assert score(reward, "#### 98.9", "100") == 0.0
    assert score(Numbers(), "#### 0.333", "1/3") == 0.0


def test_a_truth_that_is_no_number_is_told_with_what_to_write() -> None:
    assert "verifier: math_verify" in Numbers().unfit(Item("?", "", truth=r"\sqrt{2}"))
    assert "no ground truth" in Numbers().unfit(Item("?", ""))
    assert "no gold" in Numbers(truth="gold").unfit(Item("?", "", truth="3"))
    (found,) = Numbers().score([Item("?", "#### 3", truth="x+1")])
    assert found.score is None and found.fault


LONG = {
    "spaces": "The answer is" + " " * 200_000 + "4",
    "spaces without an end": "The answer is" + " " * 200_000,
    "stars": "#### " + "*" * 200_000 + "x",
    "digits": "1" * 200_000,
    "grouped digits": "1,111" * 50_000,
    "fractions": "1/" * 100_000,
    "boxes": r"\boxed{" * 30_000,
    "a fraction": r"\boxed{\frac{" + " " * 200_000 + "}",
    "tags": "<answer>" * 30_000,
    "thoughts": "</think" * 30_000,
    "fences": "```python\n" * 30_000,
    "dots": "." * 200_000 + "x",
    "quotes": "." + "'" * 200_000 + "x",
    "lines": "\n" * 200_000 + "x",
    "bullets": "- " * 100_000,
    "answers": "the answer is " * 20_000,
}


@pytest.mark.parametrize("text", LONG)
def test_no_response_takes_long_to_read(text) -> None:
    everything = {name: {"at_least": 0} for name in COUNTS}
    begun = time.monotonic()
    for reward in (
        Numbers("lenient"),
        Choice("ABCD", "lenient"),
        Exact("answer"),
        Exact("contains", "squad"),
        Constraints({**everything, "keywords": ["x"], "json": True}),
    ):
        (found,) = reward.score([Item("?", LONG[text], truth="1")])
        assert not found.fault
    code_of(LONG[text])
    assert time.monotonic() - begun < 4


def test_math_verify_is_named_with_its_extra_where_it_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InputError, match=r"pip install 'fourstage\[math\]'"):
        Formulas().start(print)


def test_math_verify_sees_that_formulas_are_equal() -> None:
    reward = Formulas()
    for response, truth, expected in (
        (r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}", 1.0),
        (r"The answer is $x^2+2x+1$.", "$(x+1)^2$", 1.0),
        (r"\boxed{2}", r"\sqrt{2}", 0.0),
        ("#### 72 clips", "72", 1.0),
        ("no answer", "72", 0.0),
    ):
        assert score(reward, response, truth) == expected


_STAND_IN = """
import time
def parse(text, parsing_timeout=5):
    assert parsing_timeout is None
    if "hang" in text:
        time.sleep(60)
    if "crash" in text:
        import os; os._exit(3)
    return [text.strip("$").replace(" ", "")] if text.strip("$") else []
def verify(gold, answer, timeout_seconds=5):
    assert timeout_seconds is None
    return gold == answer
"""


def test_a_formula_that_hangs_or_crashes_costs_its_own_response_alone(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "math_verify.py").write_text(_STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = Apart(Formulas(), seconds=0.5, workers=2)
    reward.start(print)
    try:
        answers = ["x+1", "hang", "x + 1", "crash", "x", "hang", "x+1"]
        items = [Item("?", f"\\boxed{{{answer}}}", truth="x + 1") for answer in answers]
        found = reward.score(items)
        assert [each.score for each in found] == [1.0, None, 1.0, None, 0.0, None, 1.0]
        assert found[1].fault == "took longer than 0.5 s" and "exit code 3" in found[3].fault
        # Plain numbers are compared exactly, by either verifier.
        assert reward.score([Item("?", "#### 1,250 nails", truth="1250")])[0].score == 1.0
    finally:
        reward.close()


@pytest.mark.parametrize(
    ("response", "strict", "lenient"),
    [
        ("B", "B", "B"),
        ("(b)", "B", "B"),
        ("B.", "B", "B"),
        ("**B**", "B", "B"),
        ("B) since it is so", "B", "B"),
        ("b: because", "B", "B"),
        ("The answer is (B).", "B", "B"),
        ("The correct answer is option B", "B", "B"),
        (r"\boxed{\text{B}}", "B", "B"),
        ("<answer>B</answer>", "B", "B"),
        ("A? No.\nAnswer: **B**", "B", "B"),
        ("I take B", None, "B"),
        ("A cat is in B", None, "B"),
        ("A cat", None, None),
        ("a dog", None, None),
        ("Because", None, None),
        ("The answer is Because.", None, None),
        ("E", None, None),
        ("", None, None),
    ],
)
def test_the_letter_of_a_choice_is_found(response, strict, lenient) -> None:
    assert chosen_letter(response, "ABCD") == strict
    assert chosen_letter(response, "ABCD", lenient=True) == lenient


def test_the_right_letter_is_told_by_letter_or_by_number() -> None:
    for truth in ("B", "b", "(B)", "B. Paris", "1", 1):
        assert score(Choice("ABCD"), "B", truth) == 1.0
        assert score(Choice("ABCD"), "A", truth) == score(Choice("ABCD"), "", truth) == 0.0
    for truth in (None, "E", "Paris", 4, True):
        assert Choice("ABCD").unfit(Item("?", "", truth=truth))  # ty: ignore


def test_exact_compares_what_it_is_told_to() -> None:
    assert score(Exact(), "  Paris\n", "paris") == 1.0
    assert score(Exact(normalise="none"), "Paris", "paris") == 0.0
    assert score(Exact(), "The Paris.", "paris") == 0.0
    assert score(Exact(normalise="squad"), "The Paris.", "paris") == 1.0
    assert score(Exact("answer"), "Hm.\nThe answer is Paris.", "Paris") == 1.0
    assert score(Exact("answer"), "Paris", "Paris") == 0.0
    assert score(Exact("contains"), "It is Paris, yes", "paris") == 1.0
    assert score(Exact("contains"), "It is 125", "25") == 0.0
    assert score(Exact(truth="names"), "Lutetia", names=["Paris", "Lutetia"]) == 1.0
    assert Exact().unfit(Item("?", "", truth=" ")) and Exact().unfit(Item("?", ""))


def test_a_pattern_is_the_recipes_or_the_rows() -> None:
    assert score(Pattern(r"\d{4}"), "in 1984 it was") == 1.0
    assert score(Pattern(r"\d{4}", whole=True), "in 1984") == 0.0
    assert score(Pattern(r"<a>.*</a>", whole=True), "<a>1\n2</a>\n") == 1.0
    assert score(Pattern(column="shape"), "aab", shape="^a+b$") == 1.0
    assert "no pattern" in Pattern(column="shape").unfit(Item("?", ""))
    assert "broken" in Pattern(column="shape").unfit(Item("?", "", columns={"shape": "("}))
    with pytest.raises(InputError, match="is broken"):
        Pattern("(").start(print)


def test_a_pattern_that_takes_for_ever_is_a_fault_and_the_next_response_is_judged() -> None:
    reward = Apart(Pattern(r"(a+)+$", whole=True), seconds=0.5, workers=1)
    reward.start(print)
    try:
        found = reward.score([Item("?", "a" * 40 + "b"), Item("?", "aaa")])
        assert found == [Outcome(fault="took longer than 0.5 s"), Outcome(1.0)]
    finally:
        reward.close()


def test_json_is_the_last_block_or_the_whole_response() -> None:
    assert parsed_json('{"a": 1}') == ({"a": 1}, "")
    assert parsed_json('```\n{"a": 1}\n```\nbetter:\n```json\n[2]\n```') == ([2], "")
    for text in ("no", "", '{"a": NaN}', '{"a": 1} and more', "[" * 100_000, "```json\n{\n```"):
        assert parsed_json(text)[1]


def test_a_schema_needs_its_library(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(InputError, match=r"pip install 'fourstage\[schema\]'"):
        JsonSchema({}).start(print)


def test_json_that_keeps_to_the_schema_gets_one() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    for reward, columns in (
        (JsonSchema(schema), {}),
        (JsonSchema(column="schema"), {"schema": schema}),
        (JsonSchema(column="schema"), {"schema": json.dumps(schema)}),
    ):
        assert score(reward, '{"a": 1}', **columns) == 1.0
        assert score(reward, '{"a": "1"}', **columns) == score(reward, "[]", **columns) == 0.0
    assert JsonSchema(column="schema").unfit(Item("?", ""))
    assert "broken" in JsonSchema({"type": "nothing"}).unfit(Item("?", ""))
    (found,) = JsonSchema({"$ref": "http://127.0.0.1:9/x"}).score([Item("?", "1")])
    assert "points to what is not in it" in found.fault
