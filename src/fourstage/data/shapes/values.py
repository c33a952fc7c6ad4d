"""The keys of a row and the values under them, whatever JSON holds there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fourstage.data.shapes.row import Malformed
from fourstage.errors import nearest

_MISSING = object()


class Columns:
    """An object's values by key: without case, with `_` for `-` and blanks; null is absent.

    Args:
        row: the object.
        mapping: our name of a key to theirs, or to the dotted path of an inner one.

    Attributes:
        missing: what to say of the first mapped key that the row does not have. Rows of another
            part of the data are known without it.
    """

    def __init__(self, row: Mapping[str, Any], mapping: Mapping[str, str] | None = None):
        self._values: dict[str, Any] = {}
        self._written: dict[str, str] = {}
        renamed = set(mapping.values()) if mapping else ()
        for key, value in row.items():
            name = _plain(key)
            # Of keys that differ by case alone, the one written as it is known counts.
            if key not in renamed and (key == name or name not in row):
                self._put(name, key, value)
        self.missing: Malformed | None = None
        for ours, theirs in (mapping or {}).items():
            try:
                self._put(_plain(ours), theirs, _at(row, theirs))
            except Malformed as fault:
                self.missing = self.missing or fault

    def _put(self, name: str, written: str, value: Any) -> None:
        self._written[name] = written
        self._values.pop(name, None)
        if value is not None:
            self._values[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)

    def first(self, names: tuple[str, ...]) -> str | None:
        """The first of `names` that is there."""
        for name in names:
            if name in self._values:
                return name
        return None

    def has(self, name: str) -> bool:
        """Whether there is such a key, be it null."""
        return name in self._written

    def written(self, name: str) -> str:
        """The key as the row writes it, in quotes."""
        return repr(self._written.get(name, name))

    def names(self) -> list[str]:
        """The keys that are there, as they are known."""
        return list(self._values)

    def written_items(self) -> list[tuple[str, Any]]:
        """Keys as they are written, with their values; null ones are left out."""
        return [(self._written[name], value) for name, value in self._values.items()]

    def written_keys(self) -> list[str]:
        """All keys as they are written, null ones too."""
        return list(self._written.values())


@lru_cache(maxsize=4096)
def _plain(key: str) -> str:
    return str(key).strip().lower().replace("-", "_").replace(" ", "_")


def _at(row: Mapping[str, Any], path: str) -> Any:
    """The value under a key, or under a dotted path."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
    if value is _MISSING:
        have = ", ".join(map(str, list(row)[:8])) or "no keys"
        raise Malformed(f"no key {path!r} here{nearest(path, map(str, row))} (it has: {have})")
    return value


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    for types, words in (
        (type(None), "null"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a string"),
        (bytes, "raw bytes"),
        (list, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, types):
            return words
    return f"a {type(value).__name__}"


def string(columns: Columns, name: str) -> str:
    """The string under a key; empty where there is none.

    Raises:
        Malformed: it is no string.
    """
    value = columns.get(name, "")
    if not isinstance(value, str):
        raise Malformed(f"{columns.written(name)} is {kind_of(value)}: write a string")
    return value


def filled(columns: Columns, name: str) -> str:
    """The string under a key, which says something.

    Raises:
        Malformed: it is no string, or blank.
    """
    value = string(columns, name)
    if not value.strip():
        raise Malformed(f"{columns.written(name)} is empty")
    return value


def is_lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)


def joined(columns: Columns, name: str) -> str:
    """A text that is a string or a list of lines.

    Raises:
        Malformed: it is neither, or blank.
    """
    value = columns.get(name)
    if not is_lines(value) and not isinstance(value, str):
        raise Malformed(
            f"{columns.written(name)} is {kind_of(value)}: write a string or a list of strings"
        )
    text = value if isinstance(value, str) else "\n".join(value)
    if not text.strip():
        raise Malformed(f"{columns.written(name)} is empty")
    return text


def number(value: Any) -> float | None:
    """A finite number, or one that a table wrote as text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def unpacked(value: Any) -> Any:
    """A list or object that a table wrote as JSON text; everything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def json_text(value: Any) -> str:
    """A value as JSON in one line; a string that is JSON, or that is none, as it is.

    Raises:
        Malformed: it is nested too deep.
    """
    if isinstance(value, str):
        return value.strip()
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"an object that cannot be written as JSON: {error}") from error


def plain_text(value: Any) -> str | None:
    """A string, or a number as a person writes it (1.0 is 1); None for everything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)) and number(value) is not None:
        return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else str(value)
    return None
