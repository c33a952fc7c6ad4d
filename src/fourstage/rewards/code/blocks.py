"""The code of a response, and the tests of a row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourstage.rewards.extraction import without_thought

_FENCED = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "py", "python3")


@dataclass(frozen=True)
class Tests:
    """What a program is tried with.

    Attributes:
        programs: tests that run where the code has run: such as `assert add(1, 2) == 3`.
        pairs: (standard input, expected output) of a program that reads and prints.
    """

    programs: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.programs) + len(self.pairs)


class NoTests(ValueError):
    """A row holds no tests that can be run, and why."""


def code_of(response: str, unfenced: bool = False) -> str | None:
    """The last fenced block of Python behind the reasoning; None where there is none.

    Args:
        unfenced: whether a response without any block is code as a whole.
    """
    response = without_thought(response)
    blocks = _FENCED.findall(response)
    found = [code for language, code in blocks if language.lower() in _PYTHON]
    if found:
        return found[-1]
    return response if unfenced and not blocks and response.strip() else None


def read_tests(value: Any, columns: Mapping[str, Any]) -> Tests:
    """The tests that a value holds.

    A program of asserts (of HumanEval with `check(candidate)` and the column `entry_point`); a list
    of asserts (MBPP's `test_list`); `{"inputs": [...], "outputs": [...]}` (APPS) or a list of
    `{"input", "output"}`; any of them as JSON, too.

    Raises:
        NoTests: it is something else, or there is none.
    """
    if isinstance(value, str):
        value = _unpacked(value)
    if isinstance(value, str) and value.strip():
        return Tests(programs=(_checked(value, columns),))
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            set_up = _set_up(columns)
            return Tests(programs=tuple(set_up + each for each in value))
        if all(isinstance(each, Mapping) for each in value):
            return Tests(pairs=tuple(_pair(each) for each in value))
    if isinstance(value, Mapping) and "inputs" in value:
        return _listed(value)
    if value in (None, "", [], {}):
        raise NoTests("the row has no tests")
    raise NoTests(
        "the tests are no program, list of asserts, or inputs and outputs "
        f"({type(value).__name__} {str(value)[:40]!r})"
    )


def printed_alike(printed: str, expected: str) -> bool:
    """Whether the lines are equal, but for space at their ends and empty lines at the end."""
    return _lines(printed) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _unpacked(text: str) -> Any:
    """What JSON holds; a program that is no JSON, or a number, stays text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _checked(program: str, columns: Mapping[str, Any]) -> str:
    entry = columns.get("entry_point")
    if isinstance(entry, str) and entry.isidentifier() and "def check(" in program:
        return f"{program}\ncheck({entry})\n"
    return program


def _set_up(columns: Mapping[str, Any]) -> str:
    """Imports that MBPP's asserts need."""
    found = columns.get("test_setup_code") or columns.get("test_imports") or ""
    lines = found if isinstance(found, list) else [found]
    text = "\n".join(str(line) for line in lines)
    return f"{text}\n" if text.strip() else ""


def _pair(test: Mapping[str, Any]) -> tuple[str, str]:
    if not isinstance(test.get("input", ""), str) or not isinstance(test.get("output"), str):
        raise NoTests('a test has no texts "input" and "output"')
    return test.get("input", ""), test["output"]


def _listed(value: Mapping[str, Any]) -> Tests:
    given, expected = value["inputs"], value.get("outputs")
    if value.get("fn_name"):
        raise NoTests(f"tests call the function {value['fn_name']!r} (fn_name): write asserts")
    if not isinstance(given, list) or not isinstance(expected, list) or not given:
        raise NoTests("inputs and outputs are no lists")
    if len(given) != len(expected):
        raise NoTests(f"there are {len(given)} inputs and {len(expected)} outputs")
    if not all(isinstance(each, str) for each in (*given, *expected)):
        raise NoTests("inputs and outputs are not all texts")
    return Tests(pairs=tuple(zip(given, expected, strict=True)))
