"""Messages: parts, tools, reasoning, weights, and what is no text."""

from __future__ import annotations

import json

import pytest

from fourstage.data.shapes import Malformed, recognise

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
THOUGHT = "<think>\nHm.\n</think>\n\n"


def said(*messages, **columns) -> list[str]:
    row = recognise({"messages": [USER, *messages], **columns}, "f:1")
    return [m["content"] for m in row.messages or []]


def answer(**message) -> str:
    return said({"role": "assistant", **message})[-1]


def test_textual_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "value": "lo"}, "!"]
    assert answer(content=parts) == "Hello!"
    assert answer(content={"type": "text", "text": "Hello"}) == "Hello"
    assert answer(parts=[{"text": "Hel"}, {"text": "lo"}]) == "Hello"


def test_reasoning_stands_in_front_of_the_answer_however_it_is_written() -> None:
    for message in (
        {"content": "Hello", "reasoning_content": "Hm."},
        {"content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Hello"}]},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello"}]},
        {"content": THOUGHT + "Hello"},
        {"content": THOUGHT + "Hello", "reasoning": "Hm."},
    ):
        assert answer(**message) == THOUGHT + "Hello"


def test_calls_are_written_alike_however_they_come() -> None:
    call = {"name": "look", "arguments": {"at": "sky"}}
    as_text = {"name": "look", "arguments": json.dumps({"at": "sky"})}
    for message in (
        {"content": None, "tool_calls": [{"type": "function", "id": "1", "function": as_text}]},
        {"content": "", "tool_calls": json.dumps([call])},
        {"content": [{"type": "tool_call", "value": json.dumps(call)}]},
        {"content": [{"type": "tool_use", "id": "1", "name": "look", "input": {"at": "sky"}}]},
        {"function_call": as_text},
    ):
        assert answer(**message) == CALL
    for role in ("function_call", "tool_call"):
        sharegpt = [{"from": "human", "value": "Hi"}, {"from": role, "value": json.dumps(call)}]
        row = recognise({"conversations": sharegpt}, "f:1")
        assert row.messages == [USER, {"role": "assistant", "content": CALL}]


def test_a_call_stands_on_lines_of_its_own_behind_thought_and_words() -> None:
    call = {"type": "tool_call", "value": {"name": "look", "arguments": {"at": "sky"}}}
    words = {"type": "text", "text": "I look."}
    thought = {"type": "reasoning", "value": "Hm."}
    assert answer(content=[thought, call]) == THOUGHT + CALL
    assert answer(content=[words, call, call]) == f"I look.\n{CALL}\n{CALL}"
    assert answer(content="I look.", tool_calls=[call["value"]]) == f"I look.\n{CALL}"


def test_results_are_the_users_to_say_and_neighbouring_ones_are_one_turn() -> None:
    for role in ("tool", "observation", "function"):
        results = [{"role": role, "content": "blue"}, {"role": role, "content": {"sky": 1}}]
        texts = said({"role": "assistant", "content": CALL}, *results, REPLY)
        wrapped = [f"<tool_response>\n{r}\n</tool_response>" for r in ("blue", '{"sky": 1}')]
        assert texts[2] == "\n".join(wrapped)
        assert texts[3] == "Hello"


def test_tools_stand_in_the_system_message_as_json() -> None:
    tools = [{"name": "look", "description": "看"}]
    told = '<tools>\n[{"name": "look", "description": "看"}]\n</tools>'
    assert said(REPLY, tools=tools) == [told, "Hi", "Hello"]
    assert said(REPLY, tools=json.dumps(tools, ensure_ascii=False))[0] == told
    assert said(REPLY, tools=tools, system="Be kind")[0] == f"Be kind\n\n{told}"
    own = {"messages": [{"role": "system", "content": "Be kind"}, USER, REPLY], "tools": tools}
    assert (recognise(own, "f:1").messages or [])[0]["content"] == f"Be kind\n\n{told}"
    assert said(REPLY, tools="[]") == said(REPLY, tools=None) == ["Hi", "Hello"]


def test_calls_as_an_answer_column_are_calls() -> None:
    answers = json.dumps([{"name": "look", "arguments": {"at": "sky"}}])
    row = recognise({"query": "Hi", "tools": "[]", "answers": answers}, "f:1")
    assert (row.messages or [])[-1]["content"] == CALL


@pytest.mark.parametrize("weight", [{"loss_weight": 0.0}, {"weight": 0}, {"train": False}])
def test_an_answer_of_weight_nothing_is_read_and_not_trained(weight) -> None:
    messages = [USER, {**REPLY, **weight}, USER, REPLY]
    assert recognise({"messages": messages}, "f:1").trained == (False, False, False, True)


def test_what_follows_the_last_trained_answer_is_left_out() -> None:
    messages = [USER, REPLY, USER, {**REPLY, "loss_weight": 0}]
    assert recognise({"messages": messages}, "f:1").messages == [USER, REPLY]


def test_a_conversation_that_trains_nothing_is_refused() -> None:
    with pytest.raises(Malformed, match="no answer is trained on"):
        recognise({"messages": [USER, {**REPLY, "loss_weight": 0}]}, "f:1")


def test_empty_messages_of_the_system_are_left_out() -> None:
    messages = [{"role": "system", "content": ""}, USER, REPLY]
    assert recognise({"messages": messages}, "f:1").messages == [USER, REPLY]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "no text but 'image_url'"),
        ([{"type": "text", "text": "see"}, {"type": "input_audio"}], "no text but 'input_audio'"),
        ([{"type": "text"}], "'text' without text"),
        ([{"type": "dance"}], "type 'dance'"),
        ([{"type": "text", "text": 3}], "'text' is a number"),
        ([3], "a part that is a number"),
        (True, "a content that is true or false"),
    ],
)
def test_what_is_no_text_is_refused_by_name(content, fault: str) -> None:
    with pytest.raises(Malformed, match=f"message 2 .user. has .*{fault}|message 2 .*{fault}"):
        said({"role": "user", "content": content}, REPLY)
