"""Links from docs/algorithms/ to lines of code: where each has to lead, and how to mend them.

python tests/doc_lines.py     # where code has moved: writes the right lines into the pages
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

PAGES = Path(__file__).parents[1] / "docs" / "algorithms"
# [`name`](file.py#L12), the name being a function, a class, a constant or a row of a table.
_LINK = re.compile(r"\[`(?P<name>[\w.+-]+)`\]\((?P<file>[\w./-]+\.py)#L(?P<line>\d+)\)")
# Calls whose first argument names a row.
_ROWS = ("Algorithm", "Preference")


class Link(NamedTuple):
    """A link of a page; `right` is the line that it has to lead to, None where there is no such."""

    page: Path
    name: str
    file: str
    line: int
    right: int | None

    def __str__(self) -> str:
        where = f"{self.page.name}: `{self.name}` is linked to {self.file}#L{self.line}"
        if self.right is None:
            return f"{where}, and that file has no {self.name}"
        return f"{where} and stands on line {self.right}"


def links(page: Path) -> list[Link]:
    text = page.read_text("utf-8")
    found = [(each["name"], each["file"], int(each["line"])) for each in _LINK.finditer(text)]
    return [
        Link(page, name, file, line, line_of((page.parent / file).resolve(), name))
        for name, file, line in found
    ]


def line_of(file: Path, name: str) -> int | None:
    """The line of a function, class, method (`Class.method`), constant or row of a table."""
    return _lines(file).get(name) if file.is_file() else None


@cache
def _lines(file: Path) -> dict[str, int]:
    tree = ast.parse(file.read_text("utf-8"))
    rows = {
        str(node.args[0].value): node.args[0].lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _ROWS
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    return rows | dict(_named(tree.body, ""))


def _named(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, int]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name, node.lineno
            if isinstance(node, ast.ClassDef):
                yield from _named(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield prefix + target.id, node.lineno


def mend(pages: Path = PAGES) -> list[str]:
    """Writes the right lines into all pages.

    Returns:
        what was changed, and what has no right line and was left, in words.
    """
    told = []
    for page in sorted(pages.glob("*.md")):
        stale = [link for link in links(page) if link.line != link.right]
        told += map(str, stale)
        if any(link.right for link in stale):
            mended = partial(_mended, page.parent)
            page.write_text(_LINK.sub(mended, page.read_text("utf-8")), "utf-8")
    return told


def _mended(folder: Path, found: re.Match[str]) -> str:
    right = line_of((folder / found["file"]).resolve(), found["name"])
    if right is None:
        return found[0]
    return f"[`{found['name']}`]({found['file']}#L{right})"


if __name__ == "__main__":
    for line in mend() or ["every link leads to its line"]:
        print(line)
