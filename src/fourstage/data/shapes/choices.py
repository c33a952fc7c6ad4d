"""Questions whose answer is one of several, and problems that a program of tests checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourstage.data.shapes.asked import before
from fourstage.data.shapes.row import Malformed, Row
from fourstage.data.shapes.turns import as_messages, assistant, user
from fourstage.data.shapes.values import (
    Columns,
    filled,
    is_lines,
    joined,
    number,
    plain_text,
    unpacked,
)

_QUESTIONS = ("query", "question", "question_stem", "ctx", "goal", "prompt", "input")
_CHOICES = ("choices", "options", "endings")
_RIGHT = ("gold", "answerkey", "answer_idx", "answer", "label", "correct")
_LETTERS = "abcdefghij"


def read_choice(columns: Columns, where: str) -> Row | None:
    """A question with its choices and which of them is right, as tests for reading have them.

    The choices are not told in the prompt: they are answers to be weighed against each other.
    """
    if "context_options" in columns and "continuation" in columns:
        return _read_partial(columns, where)
    right, asked = columns.first(_RIGHT), columns.first(_QUESTIONS)
    choices, names = _choices(columns)
    if right is None or asked is None or len(choices) < 2:
        return None
    index = _index(columns[right], choices, names)
    if index is None:
        raise Malformed(f"{columns.written(right)} names none of the {len(choices)} choices")
    turns = before(columns) or [user(filled(columns, asked))]
    return _verifiable([*turns, assistant(choices[index])], where, choices[index], tuple(choices))


def _read_partial(columns: Columns, where: str) -> Row:
    """Two beginnings of which one goes on rightly: partial evaluation (Trinh & Le 2018,

    arXiv:1806.02847).
    """
    options = unpacked(columns["context_options"])
    if not is_lines(options) or not options:
        raise Malformed(f"{columns.written('context_options')} is no list of strings")
    index = _index(columns.get("gold"), options, _LETTERS)
    if index is None:
        raise Malformed(f"'gold' names none of the {len(options)} beginnings")
    rest = filled(columns, "continuation")
    if not options[index].strip():
        raise Malformed(f"{columns.written('context_options')} holds an empty beginning")
    return _verifiable([user(options[index]), assistant(rest)], where, rest, ())


def _verifiable(turns: Sequence[Any], where: str, answer: str, choices: tuple[str, ...]) -> Row:
    return Row(
        "dialogue",
        where,
        messages=as_messages(turns),
        shape="verifiable",
        trained=tuple(turn.is_trained for turn in turns),
        responses=choices,
        answer=answer,
    )


def _choices(columns: Columns) -> tuple[list[str], Sequence[str]]:
    """The choices and what each is called; none where the row has none."""
    key = columns.first(_CHOICES)
    value = unpacked(columns[key]) if key else None
    names: Any = _LETTERS
    if key is None and all(letter in columns for letter in "abcd"):
        # C-Eval and CMMLU give each choice a column.
        value = [columns[letter] for letter in "abcd"]
    elif isinstance(value, dict) and isinstance(value.get("text"), list):
        value, names = value["text"], value.get("label")
    elif isinstance(value, dict):
        value, names = list(value.values()), list(value)
    if not isinstance(value, list):
        return [], _LETTERS
    texts = [plain_text(item) for item in value]
    if any(text is None or not text.strip() for text in texts):
        return [], _LETTERS
    if not isinstance(names, str) and not (is_lines(names) and len(names) == len(texts)):
        names = _LETTERS
    return [str(text) for text in texts], [name.lower() for name in names]


def _index(value: Any, choices: Sequence[str], names: Sequence[str]) -> int | None:
    """Which choice a value names: by its name, its place from 0, or its text."""
    text = plain_text(value)
    if text is None:
        return None
    text = text.strip()
    if text.lower() in names and names.index(text.lower()) < len(choices):
        return names.index(text.lower())
    place = number(value)
    if place is not None and place == int(place) and 0 <= place < len(choices):
        return int(place)
    return choices.index(text) if text in choices else None


def read_program(columns: Columns, where: str) -> Row | None:
    """A programming problem with its solution and its tests.

    Forms: HumanEval (Chen et al. 2021, arXiv:2107.03374), MBPP (Austin et al. 2021,
    arXiv:2108.07732).
    """
    if "canonical_solution" in columns and "test" in columns and "prompt" in columns:
        tests = f"{filled(columns, 'test').rstrip()}\n"
        if "entry_point" in columns:
            tests += f"\ncheck({filled(columns, 'entry_point')})\n"
        return _verifiable(
            [user(filled(columns, "prompt")), assistant(filled(columns, "canonical_solution"))],
            where,
            tests,
            (),
        )
    asked = columns.first(("prompt", "text"))
    if asked is None or "code" not in columns or "test_list" not in columns:
        return None
    turns = [user(filled(columns, asked)), assistant(filled(columns, "code"))]
    return _verifiable(turns, where, joined(columns, "test_list"), ())
