"""Rows of text, conversations and prompts: recognised by their keys, or refused in words."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.shapes import SHAPES, STAGES_OF, Malformed, Row, recognise
from fourstage.data.shapes.recognising import NAMES

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}


def test_demonstrations_are_recognised_in_every_form() -> None:
    forms = {
        "messages": [
            {"messages": [USER, REPLY]},
            {"Messages": [USER, REPLY], "prompt": "Hi", "prompt_id": "1"},
            {"messages": json.dumps([USER, REPLY])},
            {"messages": [USER, REPLY, {"role": "user", "content": "Bye"}]},
            {"messages": [{"message": "Hi", "attrs": []}, {"message": "Hello"}], "name": "x"},
            {"conversations": ["Hi", "Hello"], "source": "x"},
            {"conversation": [{"human": "Hi", "assistant": "Hello"}]},
            {"conversation": [{"input": "Hi", "output": "Hello"}]},
            {"data": ["Hi", "Hello"], "id": "0"},
            [USER, REPLY],
        ],
        "sharegpt": [
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
        ],
        "alpaca": [
            {"instruction": "Hi", "input": "", "output": "Hello", "text": "### Hi ### Hello"},
            {"Instruction": "Hi", "Response": "Hello", "context": None, "category": "x"},
        ],
        "prompt-response": [
            {"prompt": "Hi", "completion": " Hello"},
            {"prompt": "Hi", "response": "Hello", "label": None, "score": None},
            {"prompt": "Hi", "response": "Hello", "turns": 1, "input": 3, "chat": "x"},
            {"prompt": [USER], "completion": [REPLY]},
            {"question": "Hi", "response": "Hello", "system_prompt": ""},
            {"kind": "greeting", "input": "Hi", "target": "Hello"},
            {"inputs": "Hi", "targets": "Hello"},
            {"user": "Hi", "assistant": "Hello"},
            {"prompt": "\n\nHuman: Hi\n\nAssistant:", "response": " Hello"},
        ],
        "question-answer": [
            {"question": "Hi", "answer": "Hello"},
            {"problem": "Hi", "solution": "Hello"},
            {"question": "Hi", "answer": ["Hello", "Hello there"]},
        ],
        "transcript": [
            {"text": "\n\nHuman: Hi\n\nAssistant: Hello"},
            {"text": "### Human: Hi### Assistant: Hello"},
        ],
    }
    for shape, rows in forms.items():
        for row in rows:
            found = recognise(row, "f:1")
            assert (found.kind, found.shape) == ("dialogue", shape), row
            assert found.messages == [USER, REPLY], row
            assert found.trained == (False, True), row


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi"},
        {"prompt": "Hi", "type": "greeting", "label": "safe", "id": 3},
        {"prompt": "Hi", "response": None},
        {"messages": [USER]},
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {"prompt": "\n\nHuman: Hi\n\nAssistant: "},
        {"instruction": "Hi"},
        {"query": "Hi"},
    ],
)
def test_prompts_alone_are_recognised(row) -> None:
    found = recognise(row, "f:1")
    assert (found.kind, found.shape, found.messages) == ("prompt", "prompt", [USER])


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "a"}, "a"),
        ({"TEXT": "a", "label": 3}, "a"),
        ({"text": ["a", "b"]}, "a\nb"),
        ({"text": "a", "prompt": "how it was made"}, "a"),
        ({"author": "x", "paragraphs": ["a", "b"], "title": "y"}, "a\nb"),
        ({"content": "a", "path": "x.py"}, "a"),
        ({"user": "someone", "content": "a"}, "a"),
        ({"document": "a", "summary": "b"}, "a"),
    ],
)
def test_texts_are_recognised(row, text: str) -> None:
    found = recognise(row, "f:1")
    assert (found.kind, found.shape, found.text, found.as_text()) == ("text", "text", text, text)


def test_a_bare_string_is_a_text_of_a_shape_of_its_own() -> None:
    found = recognise("a", "f:1")
    assert (found.kind, found.shape, found.text) == ("text", "strings", "a")


def test_a_transcript_in_a_corpus_stays_the_text_it_was() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant: Bye"
    assert recognise({"text": text}, "f:1").as_text() == text


def test_input_system_and_history_stand_before_the_answer() -> None:
    row = {"instruction": "Sort", "input": "b a", "output": "a b", "system": "S"}
    found = recognise(row | {"history": [["q", "r"]]}, "f:1")
    assert [m["content"] for m in found.messages or []] == ["S", "q", "r", "Sort\nb a", "a b"]
    assert found.trained == (False, False, True, False, True)


def test_what_a_question_is_about_stands_before_it() -> None:
    row = {"context": "A fox ran.", "question": "Who ran?", "answers": {"text": ["A fox"]}}
    found = recognise(row, "f:1")
    assert (found.messages or [])[0]["content"] == "A fox ran.\nWho ran?"


def test_templates_are_kept_as_they_stand() -> None:
    found = recognise({"instruction": "Who?", "output": "I am {{name}}"}, "f:1")
    assert (found.messages or [])[-1]["content"] == "I am {{name}}"


def test_a_column_of_reasoning_stands_inside_the_answer() -> None:
    row = {"question": "2+2?", "complex_cot": "Count on.", "response": "4"}
    found = recognise(row, "f:1")
    assert (found.messages or [])[-1]["content"] == "<think>\nCount on.\n</think>\n\n4"


def test_a_flag_that_tells_of_reasoning_is_none() -> None:
    row = {"input": [USER], "output": "Hello", "reasoning": "off"}
    assert recognise(row, "f:1").messages == [USER, REPLY]


def test_a_score_beside_a_lone_answer_is_kept() -> None:
    found = recognise({"prompt": "Hi", "response": "Hello", "helpfulness": 4}, "f:1")
    assert (found.kind, found.shape, found.scores) == ("dialogue", "scored", (4.0,))


@pytest.mark.parametrize(
    "good_and_bad",
    [(True, False), (1, 0), ("good", "bad"), ("True", "False"), ("chosen", "rejected"), (1.0, 0.0)],
)
def test_labelled_answers_are_unpaired(good_and_bad) -> None:
    for value, label in zip(good_and_bad, (True, False), strict=True):
        for row in ({"messages": [USER, REPLY]}, {"prompt": "Hi", "completion": "Hello"}):
            found = recognise({**row, "label": value}, "f:1")
            assert (found.kind, found.shape, found.label) == ("unpaired", "unpaired", label)
            assert found.messages == [USER, REPLY]


def test_a_mapping_gives_keys_our_names() -> None:
    row = {"q": "Hi", "a": {"en": "Hello"}, "prompt": "not this"}
    found = recognise(row, "f:1", {"question": "q", "answer": "a.en"})
    assert (found.messages or [])[-1] == REPLY
    assert recognise({"prompt": "x", "body": ["a", "b"]}, "f:1", {"text": "body"}).text == "a\nb"


def test_a_mapped_name_goes_before_a_key_of_that_name() -> None:
    assert recognise({"text": "x", "full": "y"}, "f:1", {"text": "full"}).text == "y"


def test_a_mapped_key_that_is_missing_is_named_with_the_nearest() -> None:
    with pytest.raises(Malformed, match="no key 'tale' here; did you mean 'tales'"):
        recognise({"tales": "x", "heading": "y"}, "f:1", {"text": "tale"})


def test_a_row_of_another_part_is_known_without_the_mapped_keys() -> None:
    row = recognise({"prompt": "x", "chosen": "y", "rejected": "z"}, "f:1", {"question": "q"})
    assert row.kind == "comparison" and row.chosen == "y"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (None, "a row is an object with keys, this is null"),
        ([], "this is a list"),
        ([1, 2], "this is a list"),
        (3.5, "this is a number"),
        (True, "this is true or false"),
        (" ", "an empty string"),
        ({}, "an object without keys"),
        ({"text": None}, "'text' is null: write a string"),
        ({"messages": None}, "'messages' is null: write a list of messages"),
        ({"text": b"Tea"}, "'text' is raw bytes: write a string"),
        ({"text": 5}, "'text' is a number"),
        ({"text": ""}, "'text' is empty"),
        ({"Text": []}, "'Text' is empty"),
        ({"text": {"en": "x"}}, "'text' is an object"),
        ({"content": "a", "body": "b"}, "data.map.text=content"),
        ({"role": "user", "content": "x"}, "data.map.text=content"),
        ({"messages": "Hi"}, "'messages' is a string, not a list of messages"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": [{"content": "x"}]}, "message 1 has no role"),
        ({"messages": [USER, {"role": "asistant", "content": "x"}]}, "did you mean 'assistant'"),
        ({"messages": [{"role": "user"}]}, "message 1 .user. has no content"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "content that is a number"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "message 2 .* is empty"),
        ({"messages": [REPLY]}, "answers nobody"),
        ({"messages": [SYSTEM]}, "without a message of the user"),
        ({"prompt": "Hi", "completion": "  "}, "'completion' is empty"),
        ({"prompt": "Hi", "completion": 5}, "'completion' is a number"),
        ({"prompt": "", "completion": "x"}, "'prompt' is empty"),
        ({"prompt": 3, "completion": "x"}, "'prompt' is a number"),
        ({"prompt": None, "completion": "x"}, "'prompt' is null"),
        ({"instruction": "x", "input": 3, "output": "y"}, "'input' is a number"),
        ({"instruction": "x", "output": ["y"]}, "'output' is a list"),
        ({"instruction": "x", "history": ["a"], "output": "y"}, "no list of .asked, answered."),
        ({"prompt": "x", "responses": ["a", "b"]}, "without scores or ranks"),
        ({"text": "\n\nHuman: Hi"}, "does not end in a turn of 'Assistant:'"),
        ({"text": "\n\nHuman: Hi\n\nAssistant:"}, "empty turn of 'Assistant:'"),
        ({"text": "\n\nAssistant: Hello"}, "no turn of 'Human:'"),
        ({"text": "Human: a\n\nHuman:\n\nAssistant: c"}, "empty turn, its turn 2"),
    ],
)
def test_malformed_rows_say_what_is_wrong(row, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        recognise(row, "f:1")


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"q": "Hi", "a": "Hello"}, "data.map.question=q data.map.answer=a"),
        ({"提问": "你好", "回答": "你好"}, "data.map.question=提问 data.map.answer=回答"),
        ({"userQuestion": "Hi", "botReply": "Hello"}, "question=userQuestion data.map.answer=botR"),
        ({"q": "Hi", "better": "a", "worse": "b"}, "prompt=q data.map.chosen=better data.map.rej"),
        ({"talk": [USER, REPLY]}, "data.map.messages=talk"),
        ({"texts": "x"}, "data.map.text=texts"),
        ({"id": "7", "the words": "a long text"}, "'data.map.text=the words'"),
    ],
)
def test_unknown_keys_get_a_line_of_recipe_that_maps_them(row, line: str) -> None:
    with pytest.raises(Malformed) as fault:
        recognise(row, "f:1")
    assert line in str(fault.value)
    parts = str(fault.value).partition("write ")[2].replace("'", "").split("data.map.")[1:]
    mapping = dict(part.strip().split("=") for part in parts)
    assert set(mapping) <= NAMES
    assert recognise(row, "f:1", mapping)


def test_rows_without_any_text_say_what_they_hold() -> None:
    with pytest.raises(Malformed, match=r"no text among them .id is a number, x is a list"):
        recognise({"id": 3, "x": [1]}, "f:1")


def test_rows_and_faults_travel_between_processes() -> None:
    row = recognise({"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2]}, "f:1")
    assert pickle.loads(pickle.dumps(row)) == row
    assert str(pickle.loads(pickle.dumps(Malformed("why")))) == "why"


KEYS = sorted(NAMES | {"role", "from", "value", "content", "type", "rank", "score", "tool_calls"})
KEYS += ["Body", "Question", "Answer", "answer_0", "answer_1", "annotator1", "test", "entry_point"]
KEYS += ["canonical_solution", "context_options", "reward_model", "response1", "response2", "label"]
WORDS = ["", "Hi", "user", "assistant", "A", "tie", "[1]", '{"name": 1}', "text", "image", "####"]
WORDS += ["\n\nHuman: a\n\nAssistant: b", "\n\nHuman:", "\\boxed{", "\ud800", "\x00"]
numbers = st.integers() | st.floats() | st.just(10**400)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=6) | values)
def test_any_json_value_is_understood_or_refused_in_words(value) -> None:
    try:
        found = recognise(value, "f:1")
    except Malformed as fault:
        assert str(fault)
    else:
        assert found.kind in STAGES_OF and found.shape in SHAPES
        assert found.as_text().strip()
        assert all(pair.chosen != pair.rejected for pair in found.pairs())
        assert not found.trained or len(found.trained) == len(found.messages or [])


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
def test_the_order_of_keys_changes_nothing(row: dict) -> None:
    def outcome(value: dict) -> Row | None:
        try:
            return recognise(value, "f:1")
        except Malformed:
            return None

    assert repr(outcome(row)) == repr(outcome(dict(reversed(row.items()))))


@pytest.mark.parametrize("key", ["text", "label", "answer", "scores", "tools", "ground_truth"])
def test_numbers_too_long_to_be_written_are_no_traceback(key: str) -> None:
    row = {"prompt": "Hi", "response": "Hello", "responses": ["a", "b"], key: 10**5000}
    try:
        recognise(row, "f:1")
    except Malformed as fault:
        assert str(fault)


def test_deep_values_are_refused_in_words() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Malformed, match="cannot be written as JSON"):
        recognise({"messages": [USER, REPLY], "tools": deep}, "f:1")
    with pytest.raises(Malformed):
        recognise({"text": deep}, "f:1")
