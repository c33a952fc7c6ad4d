"""Comparisons: equal prompts, and two answers that differ."""

from __future__ import annotations

import json

import pytest

from fourstage.data.shapes import Malformed, Unteachable, recognise

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
NO = {"role": "assistant", "content": "No"}
PART = {"role": "assistant", "content": [{"type": "text", "value": "Hello"}], "loss_weight": 1.0}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"Prompt": "Hi", "Chosen": "Hello", "Rejected": "No"},
        {"prompt": "Hi", "chosen": [REPLY], "rejected": [NO]},
        {"prompt": "Hi", "chosen": json.dumps([REPLY]), "rejected": json.dumps([NO])},
        {"prompt": "Hi", "chosen": [USER, REPLY], "rejected": [USER, NO]},
        {"chosen": [USER, REPLY], "rejected": [USER, NO]},
        {"chosen_messages": [USER, PART], "rejected_messages": [USER, NO]},
        {"messages": [USER], "chosen": REPLY, "rejected": NO},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: Hi\n\nAssistant: No",
        },
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": " No"},
        {"instruction": "Hi", "output": "ignored", "chosen": "Hello", "rejected": "No"},
        {"system": None, "question": "Hi", "chosen": "Hello", "rejected": "No"},
        {"input": "Hi", "chosen": "Hello", "rejected": "No", "generations": ["a", "b"]},
        {"prompt": "Hi", "pos_resp": "Hello", "neg_resp": "No"},
        {"question": "Hi", "response_j": "Hello", "response_k": "No", "qid": 1},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No", "ranked": ["Hello", "Oh", "No"]},
    ],
)
def test_comparisons_are_recognised_in_every_form(row) -> None:
    found = recognise(row, "f:1")
    assert (found.kind, found.shape, found.messages) == ("comparison", "preference", [USER])
    assert (found.chosen, found.rejected) == ("Hello", "No")
    assert found.pairs() == [found]


def test_what_two_texts_have_in_common_is_their_prompt() -> None:
    found = recognise({"chosen": "Hi Hello", "rejected": "Hi No"}, "f:1")
    assert (found.kind, found.shape) == ("comparison", "implicit-prompt")
    assert (found.messages, found.chosen, found.rejected) == ([USER], "Hello", "No")


def test_a_system_message_stands_before_the_prompt() -> None:
    row = {"system": "S", "question": "Hi", "chosen": "Hello", "rejected": "No"}
    assert [m["role"] for m in recognise(row, "f:1").messages or []] == ["system", "user"]


def test_answers_to_a_prompt_may_quote_turns() -> None:
    row = {"prompt": "Hi", "chosen": "Hello\n\nHuman: is a word", "rejected": "No\n\nHuman: too"}
    assert recognise(row, "f:1").chosen == "Hello\n\nHuman: is a word"


@pytest.mark.parametrize(
    ("columns", "margin"),
    [
        ({"margin": 0.5}, 0.5),
        ({"score_chosen": 9, "score_rejected": 6.5}, 2.5),
        ({"chosen_rating": "4", "rejected_rating": "3"}, 1.0),
        ({"chosen-rating": 4.0, "rejected-rating": 3.0}, 1.0),
        ({"margin": None}, None),
        ({}, None),
    ],
)
def test_scores_become_a_margin(columns: dict, margin: float | None) -> None:
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}
    assert recognise({**row, **columns}, "f:1").margin == margin


EARLY = [{"role": "user", "content": "Ho"}, REPLY]
HUMAN = "\n\nHuman: Hi\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "Hi", "chosen": "x", "rejected": [NO]}, "a string and a list: write two str"),
        ({"prompt": "Hi", "chosen": "x", "rejected": 3}, "a string and a number"),
        ({"prompt": "Hi", "chosen": "x", "rejected": None}, "'rejected' is null or missing"),
        ({"prompt": "Hi", "rejected": "x"}, "'chosen' is null or missing"),
        ({"prompt": "", "chosen": "x", "rejected": "y"}, "'prompt' is empty"),
        ({"chosen": "Hello", "rejected": "No"}, "share no prompt"),
        ({"chosen": [REPLY], "rejected": [NO]}, "share no prompt"),
        ({"chosen": [USER, REPLY], "rejected": [USER]}, "'rejected' does not end with a mess"),
        ({"chosen": f"{HUMAN}a\n\nHuman: b", "rejected": f"{HUMAN}c"}, "'chosen' does not end in"),
        ({"chosen": f"{HUMAN}a", "rejected": "\n\nAssistant: c"}, "'rejected' has no turn of 'Hu"),
        ({"chosen": f"{HUMAN}a", "rejected": "Hi, c"}, "'rejected' has text in front"),
    ],
)
def test_malformed_comparisons_say_what_is_wrong(row, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        recognise(row, "f:1")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "Hi", "chosen": "", "rejected": "x"}, "'chosen' is empty"),
        ({"prompt": "Hi", "chosen": "x", "rejected": "  "}, "'rejected' is empty"),
        ({"chosen": HUMAN, "rejected": f"{HUMAN}c"}, "'chosen' ends in an empty turn"),
        ({"prompt": "Hi", "chosen": "x", "rejected": " x "}, "are the same answer"),
        ({"chosen": "Hi x", "rejected": "Hi x"}, "are the same answer"),
        ({"chosen": [USER, REPLY], "rejected": [*EARLY[:1], NO]}, "they part at message 1"),
        ({"chosen": [*EARLY, USER, REPLY], "rejected": [USER, NO, USER, NO]}, "part at message 1"),
        ({"chosen": [USER, REPLY, USER, NO], "rejected": [USER, NO]}, "they part at message 2"),
        ({"chosen": f"{HUMAN}a", "rejected": "\n\nHuman: Ho\n\nAssistant: a"}, "part at message 1"),
    ],
)
def test_well_formed_comparisons_that_teach_nothing_are_bad_rows_too(row, fault: str) -> None:
    with pytest.raises(Unteachable, match=fault):
        recognise(row, "f:1")
