"""Conversations, prompts with an answer, and prompts alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fourstage.data.shapes.asked import ASKED, before, conversation_key, introduced
from fourstage.data.shapes.row import Malformed, Row
from fourstage.data.shapes.tools import calls_text, is_calls, thought_text
from fourstage.data.shapes.transcripts import begins_transcript, read_transcript
from fourstage.data.shapes.truth import answer_text, final_answer, told_truth
from fourstage.data.shapes.turns import (
    Turn,
    as_messages,
    assistant,
    is_conversation,
    read_turns,
    shape_of,
)
from fourstage.data.shapes.values import (
    Columns,
    filled,
    joined,
    number,
    plain_text,
    string,
)

_RESPONSES = ("completion", "response", "output", "assistant", "bot")
# What is said under these names may be no more than a result.
_RESULTS = (
    *("solution", "answer", "answers", "targets", "target", "continuation", "gold"),
    *("correct_answer", "best_answer"),
)
SAID = (*_RESPONSES, *_RESULTS)
LABELS = ("label", "kto_tag", "desirable")
SCORES = ("score", "rating", "reward", "overall_score", "helpfulness")
SEVERAL = ("ranked", "responses", "completions", "candidates", "outputs", "answers", "summaries")
# Not `reasoning`: many sets have it say whether there was any.
_THOUGHTS = ("reasoning_content", "thinking", "complex_cot")
_GOOD = {"true", "1", "good", "chosen", "desirable", "yes", "+1", "positive"}
_BAD = {"false", "0", "bad", "rejected", "undesirable", "no", "-1", "negative"}
# Keys that alone are a row's text where it has no `text`; several of them are a person's to choose.
TEXTS = (
    *("content", "contents", "raw_content", "page_content", "document", "article", "body", "story"),
    *("passage", "paragraphs", "markdown", "code"),
)


def dialogue(turns: Sequence[Turn], where: str, shape: str) -> Row:
    """A conversation up to its last trained answer: what follows teaches nothing.

    A conversation that waits for an answer is a prompt.

    Raises:
        Malformed: there is nothing to answer, or no answer that is trained on.
    """
    answers = [n for n, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        if turns[-1].role != "user":
            raise Malformed("a conversation without a message of the user or the assistant")
        return Row("prompt", where, messages=as_messages(turns), shape="prompt")
    trained = [n for n in answers if turns[n].is_trained]
    if not trained:
        raise Malformed("a conversation of which no answer is trained on: all their weights are 0")
    if not any(turn.role == "user" for turn in turns[: trained[-1]]):
        raise Malformed("a conversation in which the assistant answers nobody")
    kept = turns[: trained[-1] + 1]
    flags = tuple(turn.is_trained for turn in kept)
    return Row("dialogue", where, messages=as_messages(kept), shape=shape, trained=flags)


def read_conversation(columns: Columns, where: str) -> Row | None:
    """Rows that hold a list of messages."""
    key = conversation_key(columns)
    if key is None:
        return None
    value = columns[key]
    turns = introduced(columns, read_turns(value, columns.written(key)))
    # A list of messages and an answer beside it: the messages are the prompt.
    if turns[-1].role != "assistant" and columns.first(_RESPONSES):
        return None
    row = dialogue(turns, where, shape_of(value))
    truth = told_truth(columns, key)
    if row.kind == "dialogue":
        return _labelled(columns, dataclasses.replace(row, answer=truth))
    return row if truth is None else dataclasses.replace(row, answer=truth, shape="verifiable")


def read_answered(columns: Columns, where: str) -> Row | None:
    """Rows of a prompt and its answer, whatever they are called."""
    said = columns.first(SAID)
    asked = before(columns) if said else None
    if said is None or asked is None:
        return None
    answer, result = _answer(columns, said)
    truth = told_truth(columns, said) or result
    row = dataclasses.replace(
        dialogue([*asked, *answer], where, _shape(columns, said, truth)), answer=truth
    )
    if row.kind != "dialogue":
        raise Malformed(f"{columns.written(said)} ends in no message of the assistant")
    score = columns.first(SCORES)
    if row.shape == "prompt-response" and score and (found := number(columns[score])) is not None:
        row = dataclasses.replace(row, shape="scored", scores=(found,))
    return _labelled(columns, row)


def _answer(columns: Columns, said: str) -> tuple[list[Turn], str | None]:
    """The answer's turns, and the result that it comes to where its name promises one."""
    value, key = columns[said], columns.written(said)
    if is_conversation([value]):
        value = [value]
    if is_conversation(value):
        return read_turns(value, key), None
    if said in _RESPONSES:
        text, result = filled(columns, said), None
    else:
        text = answer_text(value, key) if not is_calls(value) else "calls"
        result = text if said in ("continuation", "gold") else final_answer(text)
    if is_calls(value):
        text, result = calls_text(value), None
    thought = next((string(columns, name) for name in _THOUGHTS if name in columns), "")
    # As TRL reads plain columns: a completion often starts with the space after its prompt.
    return [assistant(thought_text(thought) + text.strip())], result


def _shape(columns: Columns, said: str, truth: str | None) -> str:
    asked = columns.first(ASKED)
    if asked == "instruction":
        return "alpaca"
    if said in _RESPONSES:
        return "prompt-response"
    if truth is not None:
        return "verifiable"
    return "question-answer" if asked in ("question", "problem", "query") else "prompt-response"


def _labelled(columns: Columns, row: Row) -> Row:
    """An answer that is called good or bad is not one to imitate."""
    key = columns.first(LABELS)
    label = as_label(columns[key]) if key else None
    if label is None:
        return row
    return dataclasses.replace(row, kind="unpaired", shape="unpaired", label=label)


def as_label(value: Any) -> bool | None:
    """Whether a label says good or bad; None for labels of another kind."""
    words = plain_text(value)
    words = "" if words is None else words.strip().lower()
    return True if words in _GOOD else False if words in _BAD else None


def read_text(columns: Columns, where: str) -> Row | None:
    """Rows of a text, which may be a transcript."""
    if columns.has("text"):
        if "text" not in columns:
            return None
        return text_row(joined(columns, "text"), where, columns.written("text"))
    found = [name for name in TEXTS if name in columns]
    if len(found) != 1 or columns.first(ASKED) or "role" in columns:
        return None
    value = columns[found[0]]
    if isinstance(value, list) and any(not isinstance(line, str) for line in value):
        return None
    return Row("text", where, text=joined(columns, found[0]), shape="text")


def text_row(text: str, where: str, key: str) -> Row:
    """A text, or the conversation that it is a transcript of."""
    if not begins_transcript(text):
        return Row("text", where, text=text, shape="text")
    turns = read_transcript(text, key)
    if not turns[-1].content:
        raise Malformed(f"{key} ends in an empty turn of 'Assistant:'")
    return dataclasses.replace(dialogue(turns, where, "transcript"), text=text)


def read_prompt(columns: Columns, where: str) -> Row | None:
    """Rows of a prompt alone, with its ground truth where they tell it."""
    turns = before(columns, resort=False)
    if turns is None:
        return None
    if turns[-1].role != "user":
        raise Malformed("a prompt ends with a message of the user")
    several = columns.first(SEVERAL)
    if several is not None and isinstance(columns[several], list) and columns[several]:
        raise Malformed(
            f"{columns.written(several)} holds answers without scores or ranks: add 'scores', or "
            "name the list 'ranked' where it goes from best to worst"
        )
    truth = told_truth(columns)
    shape = "prompt" if truth is None else "verifiable"
    return Row("prompt", where, messages=as_messages(turns), shape=shape, answer=truth)
