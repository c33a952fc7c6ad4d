"""HTML by function calls, in which every plain string is escaped and nothing else is possible."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

_VOID = {"br", "hr", "input", "meta", "line", "path", "circle", "rect", "polyline", "polygon"}


class Markup(str):
    """Text that is HTML already; whatever is not Markup is escaped when it becomes a child."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """`text` as HTML, with control characters made visible so that a sample can hide nothing."""
    shown = "".join(
        character if character >= " " or character in "\n\t" else chr(0x2400 + ord(character))
        for character in str(text)
    )
    return Markup(html.escape(shown, quote=True))


def join(*children: Any) -> Markup:
    """Children one after another: None vanishes, iterables are flattened, strings are escaped."""
    parts: list[str] = []
    for child in children:
        if child is None or child is False:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, Iterable) and not isinstance(child, str):
            parts.append(join(*child))
        else:
            parts.append(escape(child))
    return Markup("".join(parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """`<name attributes>children</name>`; `class_` is `class`, `stroke_width` is `stroke-width`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def table(
    header: list[Any],
    rows: list[list[Any]],
    *,
    caption: Any = None,
    class_: str = "",
    stub: bool = True,
) -> Markup:
    """A table with a head, whose cells carry their column's name so that a phone can stack them."""
    names = [_plain(cell) for cell in header]

    def row(cells: list[Any]) -> Markup:
        return tag(
            "tr",
            (
                tag("th", cell, scope="row")
                if stub and column == 0
                else tag("td", tag("span", cell), data_label=names[column])
                for column, cell in enumerate(cells)
            ),
        )

    head = tag("thead", tag("tr", (tag("th", cell, scope="col") for cell in header)))
    head = head if any(names) else None
    body = tag("tbody", map(row, rows))
    title = tag("caption", caption) if caption is not None else None
    return tag("div", tag("table", title, head, body, class_=class_ or None), class_="scroll")


def _plain(cell: Any) -> str:
    """The text of a header cell, without the tags that it may have."""
    if not isinstance(cell, Markup):
        return str(cell)
    text, inside = [], False
    for character in cell:
        if character in "<>":
            inside = character == "<"
        elif not inside:
            text.append(character)
    return html.unescape("".join(text))
