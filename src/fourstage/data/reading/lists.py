"""Rows of a JSON text that is no JSON lines, read forward with only the row at hand in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fourstage.data.reading.faults import Unreadable
from fourstage.data.reading.jsontext import SPACE, Broken, parse_value, refuse_other

# An object up to this many characters is read whole before it is told whether it holds rows.
_WHOLE = 1 << 26
# Fields of a row that are lists of objects themselves.
_OF_A_ROW = {"messages", "conversations", "conversation", "turns", "history", "tools", "responses"}
_OF_A_MESSAGE = {"role", "from", "speaker"}
_TOKENS = re.compile(r'"(?:[^"\\\n]|\\.)*+"|[\[\]{}]')
_NEAR = 16


@dataclass
class Found:
    """A row of a JSON text.

    Attributes:
        value: the row, or the fault why it is none.
        number: 1-based; in a list the row's number, else the line where it begins.
    """

    value: Any | Broken
    number: int


class Values:
    """Rows of a JSON text: of a list, of the one list in an object, or objects one after another.

    Args:
        read: the next piece of the text, empty at its end.
        most: characters that a row may have.

    Raises:
        Unreadable: (when iterated) a row is too long, or there is a single value that is no row.
    """

    def __init__(self, read: Callable[[], str], name: str, most: int):
        self._read, self._name, self._most = read, name, most
        self._text, self._at, self._ended = "", 0, False
        # Text from here on is kept, to be read again.
        self._mark: int | None = None
        self._line, self._counted = 1, 0

    def __iter__(self) -> Iterator[Found]:
        is_first = True
        while start := self._next():
            if start == "[":
                yield from self._list()
            elif start == "{":
                yield from self._object()
            elif is_first:
                raise Unreadable(
                    self._name, "is JSON, but no rows: write a list of objects, or one a line"
                )
            else:
                why = f"broken JSON: {start!r} after the end of the rows in line {self._here()}"
                yield Found(Broken(why), self._here())
                self._drain()
            is_first = False

    def _more(self) -> bool:
        """Another piece of the text, behind what is kept; False at its end."""
        kept = self._at if self._mark is None else self._mark
        if len(self._text) - kept > self._most:
            raise Unreadable(self._name, f"has a row of more than {self._most} characters")
        # As much again as is held, so that a long row is tried a few times only.
        parts, size = [self._text[kept:]], 0
        while size <= len(parts[0]) and not self._ended:
            piece = self._read()
            self._ended = not piece
            parts.append(piece)
            size += len(piece)
        self._line, self._counted = self._here(kept), 0
        self._text, self._at = "".join(parts), self._at - kept
        self._mark = None if self._mark is None else 0
        return size > 0

    def _here(self, place: int | None = None) -> int:
        """The line of a place in the text held, of the next character when left out."""
        place = self._at if place is None else place
        if place < self._counted:
            return self._line - self._text.count("\n", place, self._counted)
        self._line += self._text.count("\n", self._counted, place)
        self._counted = place
        return self._line

    def _next(self, passed: str = "") -> str:
        """The next character that is neither white space nor `passed`; empty at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()  # ty: ignore
            if self._at == len(self._text):
                if not self._more():
                    return ""
            elif self._text[self._at] == passed:
                self._at += 1
            else:
                return self._text[self._at]

    def _value(self) -> Any:
        """The value that begins here; the place is behind it, or unchanged where it is broken."""
        while True:
            try:
                value, end = parse_value(self._text, self._at)
            except Broken as fault:
                # What ends within reach of the held text's end may only be unfinished.
                may_go_on = fault.is_cut or fault.at > len(self._text) - _NEAR
                if may_go_on and not self._ended and self._more():
                    continue
                raise
            self._at = end
            return value

    def _row(self, number: int) -> Iterator[Found]:
        """The row that begins here, or its fault; the place is behind it."""
        try:
            value = self._value()
        except Broken as fault:
            line = self._here(max(fault.at, self._at))
            yield Found(Broken(f"{fault} in line {line}"), number)
            if not self._skip():
                self._drain()
            return
        yield from _judged(value, number)

    def _skip(self) -> bool:
        """Goes behind a broken value by its brackets; False where they do not close."""
        if self._text[self._at : self._at + 1] not in ("{", "["):
            return False
        while True:
            depth = 0
            for token in _TOKENS.finditer(self._text, self._at):
                depth += (token[0] in "[{") - (token[0] in "]}")
                if depth == 0 and token[0] in "]}":
                    self._at = token.end()
                    return True
            if self._ended or not self._more():
                return False

    def _drain(self) -> None:
        """Passes over the rest, so that damage further on is met."""
        while not self._ended:
            self._ended = not self._read()
        self._text, self._at, self._counted = "", 0, 0

    def _list(self) -> Iterator[Found]:
        self._at += 1
        number = 0
        while (start := self._next(",")) != "]":
            number += 1
            if not start:
                why = "broken JSON: the list has no end: the file is cut, or unreadable from here"
                yield Found(Broken(why), number)
                return
            yield from self._row(number)
        self._at += 1

    def _object(self) -> Iterator[Found]:
        """An object as one row, or the rows of the only list of objects in it."""
        self._mark = self._at
        number = self._here()
        most, self._most = self._most, min(self._most, _WHOLE)
        try:
            value = self._value()
        except (Broken, Unreadable) as error:
            self._most = most
            fault = error
        else:
            self._most, self._mark = most, None
            key = self._only_list(value)
            if key is None:
                yield Found(value, number)
            else:
                rows = enumerate(value[key], 1)
                for count, row in rows:
                    yield from _judged(row, count)
            return
        # Too long to be a row, or broken: only a list in it can be read.
        if self._to_list():
            self._mark = None
            yield from self._list()
            yield from self._to_end()
            return
        self._at, self._mark = self._mark or 0, None
        if isinstance(fault, Unreadable):
            raise fault
        yield from self._row(number)

    def _only_list(self, value: dict[str, Any]) -> str | None:
        """The key of the rows in an object such as {"data": [...]}.

        Raises:
            Unreadable: there are several.
        """
        keys = [key for key, inner in value.items() if _is_rows(key, inner)]
        if len(keys) > 1:
            raise Unreadable(self._name, _several(keys))
        return keys[0] if keys else None

    def _to_list(self) -> bool:
        """Goes to the first list of rows in the object that begins here."""
        self._at += 1
        try:
            while self._next(",") == '"':
                key = self._value()
                if self._next() != ":":
                    return False
                self._at += 1
                if self._next() == "[":
                    place = self._at - (self._mark or 0)
                    self._at += 1
                    first = self._value() if self._next() == "{" else None
                    self._at = (self._mark or 0) + place
                    if _is_rows(key, [first]):
                        return True
                self._next()
                self._value()
        except (Broken, Unreadable):
            return False
        return False

    def _to_end(self) -> Iterator[Found]:
        """Goes over what an object has behind its rows.

        Raises:
            Unreadable: a second list of rows.
        """
        try:
            while self._next(",") == '"':
                key = self._value()
                if self._next() == ":":
                    self._at += 1
                    self._next()
                if _is_rows(key, self._value()):
                    raise Unreadable(self._name, _several([key]))
        except Broken as fault:
            yield Found(Broken(f"{fault} in line {self._here()}"), self._here())
            self._drain()
            return
        if self._next() == "}":
            self._at += 1
        else:
            yield Found(Broken("broken JSON: the object has no end: the file is cut"), self._here())
            self._drain()


def _judged(value: Any, number: int) -> Iterator[Found]:
    try:
        refuse_other(value)
    except Broken as fault:
        yield Found(fault, number)
    else:
        yield Found(value, number)


def _is_rows(key: str, value: Any) -> bool:
    """Whether a field of an object is a list of rows, and not part of a row that the object is."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return key.lower() not in _OF_A_ROW and not _OF_A_MESSAGE & set(value[0])


def _several(keys: list[str]) -> str:
    return f"holds several lists of rows ({', '.join(keys)}): write each to a file of its own"
