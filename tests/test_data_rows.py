"""Rows: recognised by their keys, or refused with what to write instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.rows import Malformed, recognise

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, REPLY]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"prompt": "Hi", "completion": " Hello"},
        {"prompt": "Hi", "response": "Hello"},
        {"prompt": [USER], "completion": [REPLY]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"messages": [USER, REPLY, {"role": "user", "content": "Bye"}]},
    ],
)
def test_demonstrations_are_recognised_in_every_form(row) -> None:
    found = recognise(row, "f:1")
    assert (found.kind, found.messages) == ("dialogue", [USER, REPLY])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": "Hi", "chosen": [REPLY], "rejected": [{**REPLY, "content": "No"}]},
        {"prompt": "Hi", "chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "No"}]},
        {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "No"}]},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: Hi\n\nAssistant: No",
        },
        {"chosen": "Hi Hello", "rejected": "Hi No"},
        {"instruction": "Hi", "output": "ignored", "chosen": "Hello", "rejected": "No"},
    ],
)
def test_comparisons_are_recognised_in_every_form(row) -> None:
    found = recognise(row, "f:1")
    assert found.kind == "comparison" and found.messages == [USER]
    assert (found.chosen, found.rejected) == ("Hello", "No")


def test_alpaca_input_system_and_history_stand_before_the_answer() -> None:
    row = {"instruction": "Sort", "input": "b a", "output": "a b", "system": "S"}
    found = recognise(row | {"history": [["q", "r"]]}, "f:1")
    assert [m["content"] for m in found.messages] == ["S", "q", "r", "Sort\nb a", "a b"]


def test_prompts_alone_and_texts_are_recognised() -> None:
    assert recognise({"prompt": "Hi"}, "f:1").kind == "prompt"
    assert recognise({"messages": [USER]}, "f:1").kind == "prompt"
    assert recognise({"text": "a"}, "f:1").text == "a"
    assert recognise({"body": ["a", "b"]}, "f:1", key="body").text == "a\nb"


def test_scores_become_a_margin() -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 9, "score_rejected": 6.5}
    assert recognise(row, "f:1").margin == 2.5


def test_conversations_that_part_early_are_unusable_not_malformed() -> None:
    early = [{"role": "user", "content": "Ho"}, REPLY]
    row = {"chosen": [USER, REPLY, USER, REPLY], "rejected": [*early, USER, REPLY]}
    assert recognise(row, "f:1").kind == "unusable"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([], "a row is an object"),
        ({}, "no keys"),
        ({"texts": "x"}, "data.key=texts"),
        ({"text": None}, "'text' is a NoneType"),
        ({"messages": "Hi"}, "not a list of messages"),
        ({"messages": [{"content": "x"}]}, "no role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role 'robot'"),
        ({"messages": [{"role": "user"}]}, "without content"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "content is not text"),
        ({"messages": [REPLY]}, "begins with the assistant"),
        ({"prompt": "Hi", "completion": "  "}, "'completion' is empty"),
        ({"prompt": 3, "completion": "x"}, "'prompt' is empty or not text"),
        ({"prompt": "Hi", "chosen": "x", "rejected": [REPLY]}, "not both strings"),
        ({"prompt": "Hi", "chosen": "", "rejected": " "}, "both empty"),
        ({"chosen": "Hello", "rejected": "No"}, "share no prompt"),
    ],
)
def test_malformed_rows_say_what_is_wrong(row, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        recognise(row, "f:1")


TOP = ["text", "messages", "conversations", "prompt", "completion", "response", "instruction"]
MORE = ["input", "output", "question", "answer", "chosen", "rejected", "system", "history"]
KEYS = [*TOP, *MORE, "margin", "role", "content", "from", "value"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "Hi", "user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYS), values) | values)
def test_any_json_value_is_understood_or_refused_in_words(row) -> None:
    try:
        found = recognise(row, "f:1")
    except Malformed as fault:
        assert str(fault)
    else:
        assert found.kind in ("text", "dialogue", "comparison", "prompt", "unusable")
