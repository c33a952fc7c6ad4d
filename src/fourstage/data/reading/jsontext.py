"""A JSON value, or in words why it is broken."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

# Beyond these a value cannot be pickled, or printed as JSON again, by every Python.
_DEEPEST = 100
BLANK = " \t\r\n\ufeff"
SPACE = re.compile(r"[ \t\r\n\ufeff]*")


class Broken(ValueError):
    """A value that is not JSON, or none that a row can be; the text says why.

    Attributes:
        at: characters from the start of what was parsed.
        is_cut: whether it may only be unfinished.
    """

    def __init__(self, why: str, at: int = 0, is_cut: bool = False):
        super().__init__(why)
        self.at, self.is_cut = at, is_cut


def _refuse_constant(name: str) -> NoReturn:
    raise Broken(f"{name} is no JSON number; write null or leave the key out")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise Broken(f"{digits[:20]} is too large a number")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def parse_row(line: str) -> Any:
    """The value of a line that holds exactly one.

    Raises:
        Broken: it is not JSON, or not an object (a bare string is a text and stands).
    """
    value, end = parse_value(line, SPACE.match(line).end())  # ty: ignore
    rest = line[end:].strip(BLANK)
    if rest:
        is_second = rest.lstrip(", ")[:1] in ("{", "[", '"')
        why = "two values on one line" if is_second else "text after the value"
        raise Broken(f"broken JSON: {why} (column {end + 1}); write one object a line")
    refuse_other(value)
    return value


def refuse_other(value: Any) -> None:
    """Refuses what no row can be.

    Raises:
        Broken: not an object and not a string.
    """
    if isinstance(value, (dict, str)):
        return
    names = {list: "a list", type(None): "null", bool: "true or false"}
    raise Broken(f"a row is an object, not {names.get(type(value), 'a number')}")


def parse_value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends.

    Raises:
        Broken: there is none; with the reason in words.
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _explained(text, error) from error
    except Broken:
        raise
    except RecursionError as error:
        raise Broken(f"nested deeper than {_DEEPEST} levels") from error
    except ValueError as error:
        raise Broken("a number of more digits than can be read") from error
    if _is_deep(value):
        raise Broken(f"nested deeper than {_DEEPEST} levels")
    return value, end


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _explained(text: str, error: json.JSONDecodeError) -> Broken:
    at, column = error.pos, error.colno
    here = text[at : at + 1]
    is_cut = error.msg.startswith("Unterminated string") or at >= len(text.rstrip(BLANK))
    before = text[:at].rstrip()[-1:]
    closes = text[at + 1 :].lstrip()[:1] if here == "," else here
    if is_cut:
        why = "it is cut: its end is missing"
    elif closes in ("}", "]") and "," in (here, before):
        why = f"a trailing comma before {closes!r}"
    elif here == "'":
        why = "single quotes; JSON needs double quotes"
    elif error.msg.startswith("Invalid control"):
        why = "a raw control character in a string; write \\n for a line break"
    elif error.msg.startswith("Invalid \\"):
        why = "a backslash that escapes nothing; write \\\\"
    else:
        why = error.msg[:1].lower() + error.msg[1:]
    return Broken(f"broken JSON: {why} (column {column})", at, is_cut)
