"""Rankings: lists with scores or ranks, pairs with votes, and the comparisons they hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.shapes import Malformed, recognise

USER = {"role": "user", "content": "Hi"}


def pairs(row: dict) -> list[tuple[str, str, float | None]]:
    found = recognise(row, "f:1")
    assert found.kind == "ranking" and found.messages == [USER]
    return [(pair.chosen, pair.rejected, pair.margin) for pair in found.pairs()]


@pytest.mark.parametrize(
    "columns",
    [
        {"responses": ["No", "Hello"], "scores": [1, 3]},
        {"responses": ["No", "Hello"], "rewards": [-1.0, 1.0]},
        {"completions": [{"text": "No", "score": "1"}, {"text": "Hello", "score": "3"}]},
        {
            "completions": [
                {"response": "No", "overall_score": 1, "annotations": {}},
                {"response": "Hello", "overall_score": 3, "annotations": {}},
            ]
        },
        {"answers": [{"text": "No", "pm_score": 1}, {"text": "Hello", "pm_score": 3}]},
        {"answer_0": "No", "answer_1": "Hello", "score_0": -1.0, "score_1": 1.0},
        {"human_ref_A": "No", "human_ref_B": "Hello", "score_A": 1, "score_B": 3, "labels": 0},
        {"response_1": "No", "response_2": "Hello", "preference_strength": 2},
    ],
)
def test_scored_answers_give_comparisons_with_margins(columns: dict) -> None:
    row = {"prompt": "Hi", **columns}
    assert recognise(row, "f:1").shape == "scored"
    assert pairs(row) == [("Hello", "No", 2.0)]


@pytest.mark.parametrize(
    "columns",
    [
        {"ranked": ["Hello", "No"]},
        {"responses": ["No", "Hello"], "ranks": [2, 1]},
        {"answers": [{"answer": "No", "rank": 2.0}, {"answer": "Hello", "rank": 1.0}]},
        {
            "response1": "No",
            "response2": "Hello",
            "annotator1": 2,
            "annotator2": 1,
            "annotator3": 2,
        },
        {
            "response1": "No",
            "response2": "Hello",
            "annotator1": 2,
            "annotator2": 0,
            "annotator3": 0,
        },
        {"response_a": "No", "response_b": "Hello", "winner": "model_b"},
        {"response_A": "No", "response_B": "Hello", "winner": "B"},
        {"output_1": "No", "output_2": "Hello", "preference": 2.0},
        {"output_1": "No", "output_2": "Hello", "preference": 1.97},
        {
            "response_0": "No",
            "response_1": "Hello",
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        {"response_1": "No", "response_2": "Hello", "winner": "response_2"},
        {"response1": "No", "response2": "Hello", "better": "response2"},
        {"summaries": [{"text": "No"}, {"text": "Hello"}], "choice": 1},
    ],
)
def test_ranked_answers_give_comparisons(columns: dict) -> None:
    row = {"prompt": "Hi", **columns}
    assert recognise(row, "f:1").shape == "ranking"
    assert pairs(row) == [("Hello", "No", None)]


def test_whole_conversations_are_ranked_by_their_last_answers() -> None:
    sides = [[USER, {"role": "assistant", "content": said}] for said in ("No", "Hello")]
    row = {"conversation_a": sides[0], "conversation_b": sides[1], "winner": "model_b"}
    assert pairs(row) == [("Hello", "No", None)]


@pytest.mark.parametrize(
    "columns",
    [
        {"response1": "a", "response2": "b", "annotator1": 0, "annotator2": 1, "annotator3": 2},
        {"response_a": "a", "response_b": "b", "winner": "tie"},
        {"response_a": "a", "response_b": "b", "winner": "tie (bothbad)"},
        {"response1": "a", "response2": "b", "preference": 1.5},
        {"responses": ["a", "b"], "scores": [1, 1]},
        {"responses": ["same", "same "], "scores": [1, 2]},
    ],
)
def test_ties_are_rows_without_comparisons(columns: dict) -> None:
    assert pairs({"prompt": "Hi", **columns}) == []


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"responses": ["a", "b"], "scores": [1]}, "'scores' holds 1 numbers for 2 answers"),
        ({"responses": ["a", "b"], "scores": [1, "x"]}, "'scores' holds something that is no num"),
        ({"responses": ["a", ""], "scores": [1, 2]}, "answer 2 of 'responses' is empty"),
        ({"responses": ["a", 3], "scores": [1, 2]}, "answer 2 of 'responses' is a number"),
        ({"responses": ["a"], "scores": [1]}, "a single answer compares nothing"),
        ({"ranked": ["a"]}, "a single answer compares nothing"),
        ({"completions": [{"text": "a", "score": 1}, {"text": "b"}]}, "some have none"),
        ({"response_a": "a", "response_b": "b"}, "add the key 'winner'"),
        ({"response_a": "a", "response_b": "b", "winner": "gpt-4"}, "'winner' is 'gpt-4': write a"),
        (
            {"response_a": "a", "response_b": "b", "label": 1},
            "'label' is a number: write a, b or t",
        ),
        ({"response1": "a", "response2": "b", "annotator1": 7}, "write 1, 2 or tie"),
        ({"response1": "", "response2": "b", "annotator1": 2}, "'response1' is empty"),
        ({"summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}, "names none of the summ"),
    ],
)
def test_malformed_rankings_say_what_is_wrong(columns: dict, fault: str) -> None:
    with pytest.raises(Malformed, match=fault):
        recognise({"prompt": "Hi", **columns}, "f:1")


def test_answers_without_a_prompt_are_refused() -> None:
    with pytest.raises(Malformed, match="answers without a prompt"):
        recognise({"ranked": ["a", "b"]}, "f:1")


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_comparisons_of_a_ranking_are_all_strictly_better_pairs(scores: list[int]) -> None:
    texts = [f"answer {n}" for n in range(len(scores))]
    row = recognise({"prompt": "Hi", "responses": texts, "scores": scores}, "f:1")
    found = {(pair.chosen, pair.rejected, pair.margin) for pair in row.pairs()}
    assert found == {
        (texts[a], texts[b], float(scores[a] - scores[b]))
        for a in range(len(scores))
        for b in range(len(scores))
        if scores[a] > scores[b]
    }
    best = texts[scores.index(max(scores))]
    assert row.as_text() == f"Hi\n{best}"
