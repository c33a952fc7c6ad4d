"""Ground truth: where it stands, and what of a worked answer it is."""

from __future__ import annotations

import pytest

from fourstage.data.shapes import Malformed, recognise
from fourstage.data.shapes.truth import final_answer

USER = {"role": "user", "content": "6 x 7?"}


@pytest.mark.parametrize(
    "columns",
    [
        {"question": "6 x 7?", "answer": "It is <<6*7=42>>42.\n#### 42"},
        {"problem": "6 x 7?", "solution": "It is $\\boxed{42}$."},
        {"problem": "6 x 7?", "solution": "Count: it is 42.", "answer": "42"},
        {"question": "6 x 7?", "answer": 42},
        {"question": "6 x 7?", "answer": {"value": "42", "aliases": ["forty-two"]}},
        {"question": "6 x 7?", "answer": 42.0},
        {"prompt": "6 x 7?", "answer": "42"},
        {"prompt": "6 x 7?", "solution": "<think>..</think> <answer> 42 </answer>"},
        {"Body": "Six by seven.", "Question": "6 x 7?", "Answer": 42.0},
        {"context": "6 x 7?", "continuation": "42"},
        {"query": "6 x 7?", "choices": ["41", "42"], "gold": 1},
        {
            "question": "6 x 7?",
            "choices": {"text": ["41", "42"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        {"question": "6 x 7?", "options": {"A": "41", "B": "42"}, "answer": "B"},
        {"question": "6 x 7?", "A": "41", "B": "42", "C": "43", "D": "44", "answer": "B"},
        {"ctx": "6 x 7?", "endings": ["41", "42"], "label": "1"},
        {"question": "6 x 7?", "choices": ["41", "42"], "answer": 1},
        {"context_options": ["5 x 7?", "6 x 7?"], "continuation": "42", "gold": 1},
    ],
)
def test_a_dialogue_with_ground_truth_is_verifiable(columns: dict) -> None:
    found = recognise(columns, "f:1")
    assert (found.kind, found.shape, found.answer) == ("dialogue", "verifiable", "42")
    assert (found.messages or [])[0]["content"].endswith("6 x 7?")
    assert found.trained == (False, True)


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "6 x 7?", "ground_truth": "42"},
        {"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "42"}},
        {"messages": [USER], "ground_truth": "42", "dataset": "x"},
        {"question": "6 x 7?", "final_answer": 42, "difficulty": 2.0},
        {"problem": "6 x 7?", "ground_truth": ["42", "forty-two"]},
    ],
)
def test_a_prompt_with_ground_truth_is_verifiable(columns: dict) -> None:
    found = recognise(columns, "f:1")
    assert (found.kind, found.shape, found.answer) == ("prompt", "verifiable", "42")
    assert found.messages == [USER]


def test_an_answer_in_words_is_no_ground_truth() -> None:
    found = recognise({"question": "Why?", "answer": "Because it rains."}, "f:1")
    assert (found.shape, found.answer) == ("question-answer", None)


@pytest.mark.parametrize("truth", ["", " ", [], {}, None])
def test_an_empty_truth_is_none(truth) -> None:
    found = recognise({"prompt": "6 x 7?", "ground_truth": truth}, "f:1")
    assert (found.kind, found.shape, found.answer) == ("prompt", "prompt", None)


def test_a_conversation_keeps_the_truth_beside_it() -> None:
    reply = {"role": "assistant", "content": "It is 42."}
    found = recognise({"messages": [USER, reply], "answer": "42", "solution": "x"}, "f:1")
    assert (found.kind, found.shape, found.answer) == ("dialogue", "messages", "42")


def test_the_choices_of_a_question_are_kept() -> None:
    row = recognise({"query": "6 x 7?", "choices": ["41", "42"], "gold": 1}, "f:1")
    assert row.responses == ("41", "42") and row.pairs() == []


def test_the_truth_of_a_program_is_its_tests() -> None:
    tests = "def check(f):\n    assert f(1) == 2\n"
    row = {"prompt": "def f(x):\n", "canonical_solution": "    return x + 1\n", "test": tests}
    found = recognise({**row, "entry_point": "f", "task_id": "1"}, "f:1")
    assert (found.kind, found.shape) == ("dialogue", "verifiable")
    exec(f"def f(x):\n    return x + 1\n{found.answer}", {})
    row = {"text": "Write f.", "code": "def f(x): ...", "test_list": ["assert f(1)", "assert f(2)"]}
    assert recognise(row, "f:1").answer == "assert f(1)\nassert f(2)"


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"question": "x", "answer": ""}, "'answer' is empty"),
        ({"question": "x", "answer": {"a": 1}}, "'answer' is a"),
        ({"query": "x", "choices": ["a", "b"], "gold": 2}, "'gold' names none of the 2 choices"),
        ({"query": "x", "choices": ["a", "b"], "gold": "E"}, "'gold' names none of the 2 choices"),
        ({"context_options": ["a"], "continuation": "c", "gold": 1}, "none of the 1 beginnings"),
        ({"prompt": "x", "canonical_solution": "y", "test": 3}, "'test' is a number"),
    ],
)
def test_malformed_truths_say_what_is_wrong(columns: dict, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        recognise(columns, "f:1")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("So 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,000", "1,000"),
        ("Thus \\boxed{1} and then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("<answer>x = 3</answer>", "x = 3"),
        ("-3.5", "-3.5"),
        ("$ 12", "$ 12"),
        ("3/4", "3/4"),
        ("(B)", "(B)"),
        ("Yes", "Yes"),
        ("\\boxed{never closed", None),
        ("Paris is the capital.", None),
        ("####", None),
    ],
)
def test_the_end_result_of_a_worked_answer(text: str, result: str | None) -> None:
    assert final_answer(text) == result


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "Is tea hot?", "passage": "Tea is hot.", "answer": True}, "yes"),
        ({"question": "Is ice hot?", "answer": False}, "no"),
        ({"question": "Which?", "correct_answer": "tea", "support": "Tea it is."}, "tea"),
        (
            {
                "question_stem": "Which is a drink?",
                "choices": {"text": ["ice", "tea"], "label": ["A", "B"]},
                "answerKey": "B",
            },
            "tea",
        ),
    ],
)
def test_answers_of_well_known_sets_are_found(row, answer) -> None:
    known = recognise(row, "f:1")
    assert known.messages[-1] == {"role": "assistant", "content": answer}
