"""The text of a web page: what is said on it, without its scripts, styles and menus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import unescape

# What is never part of the text. A menu that is not closed is no menu: see `_Page.end`.
_SKIPPED = {"nav", "aside", "footer", "head", "noscript", "template", "svg", "iframe", "object"}
_RAW = {"script", "style"}
_PARAGRAPHS = {
    *("p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "table", "ul", "ol", "dl"),
    *("article", "section", "main", "header", "figure", "hr", "body"),
}
_LINES = {"br", "div", "li", "tr", "dt", "dd", "caption", "figcaption", "option", "form", "address"}
_CELLS = {"td", "th"}
# A tag's quotes may hold ">". Longer tags end at their first ">".
_TAG = re.compile(r"""</?[a-zA-Z]((?:[^>"']++|"[^"]*+"|'[^']*+')*+)>""")
_TAG_NAME = re.compile(r"<(/?)([a-zA-Z][^\s/<>]{0,40}+)")
_SHORT = 1 << 12
_LONGEST = 1 << 20
_LONGEST_SKIPPED = 1 << 20
_SPACE = re.compile(r"[ \xa0\t\n\r\f]+")


def page_text(pieces: Iterable[str]) -> Iterator[str]:
    """Paragraphs of a page, each with an empty line behind it.

    Entities are decoded; blocks, list items and rows of tables become lines, cells are parted by
    tabs, and white space is kept in `pre` only.

    Args:
        pieces: the page as it comes.
    """
    page = _Page()
    held = ""
    for piece in pieces:
        held = page.take(held + piece, is_last=False)
        yield from page.paragraphs()
    page.take(held, is_last=True)
    page.end()
    yield from page.paragraphs()


class _Page:
    def __init__(self) -> None:
        self._done: list[str] = []
        self._line: list[str] = []
        self._lines: list[str] = []
        self._preformatted = 0
        # The element being skipped, how often it is open, and what it said.
        self._skipping, self._depth = "", 0
        self._skipped: list[str] = []
        self._skipped_size = 0
        self._raw = ""
        self._ends: dict[str, int] = {}

    def paragraphs(self) -> Iterator[str]:
        """Those that were finished since the last call."""
        done, self._done = self._done, []
        yield from done

    def take(self, text: str, is_last: bool) -> str:
        """Takes in a piece; what may be an unfinished tag is returned, to come again."""
        at, self._ends = 0, {}
        while at < len(text):
            if self._raw:
                close = re.compile(rf"</{self._raw}\b[^>]*>", re.I).search(text, at)
                if close is None:
                    return "" if is_last else text[max(at, len(text) - 256) :]
                self._raw, at = "", close.end()
                continue
            mark = text.find("<", at)
            if mark < 0:
                self._say(text[at:])
                return ""
            self._say(text[at:mark])
            at = self._markup(text, mark, is_last)
            if at < 0:
                return text[mark:]
        return ""

    def _markup(self, text: str, at: int, is_last: bool) -> int:
        """Takes what begins with "<"; where it ends, or -1 where that is not here yet."""
        may_go_on = not is_last and len(text) - at < _LONGEST
        for start, end in (("<!--", "-->"), ("<!", ">"), ("<?", ">")):
            if text.startswith(start, at):
                place = self._find(text, end, at + 2)
                if place < 0 and may_go_on:
                    return -1
                return place + len(end) if place >= 0 else at + len(start)
        name = _TAG_NAME.match(text, at)
        if name is None:
            if may_go_on and len(text) - at < 3:
                return -1
            self._say("<")
            return at + 1
        close = self._find(text, ">", at) + 1
        if close == 0:
            if may_go_on:
                return -1
            self._say("<")
            return at + 1
        if close < at + _SHORT:
            tag = _TAG.match(text, at, at + _SHORT)
            if tag is None and not is_last and len(text) - at < _SHORT:
                return -1
            close = tag.end() if tag else close
        is_empty = text[close - 2] == "/"
        self._tag(name[2].lower(), is_end=bool(name[1]), is_empty=is_empty)
        return close

    def _find(self, text: str, end: str, at: int) -> int:
        """`text.find(end, at)`, looked for once however many tags before it are left open."""
        if end not in self._ends or -1 < self._ends[end] < at:
            self._ends[end] = text.find(end, at)
        return self._ends[end]

    def _tag(self, name: str, is_end: bool, is_empty: bool) -> None:
        if name in _RAW and not is_end and not is_empty:
            self._raw = name
        elif self._skipping:
            if name == self._skipping:
                self._depth += -1 if is_end else 1
            if self._depth == 0:
                self._skipping, self._skipped = "", []
            elif name in ("body", "main"):
                # The head or menu before it was left open.
                self.end()
        elif name in _SKIPPED and not is_end and not is_empty:
            self._skipping, self._depth, self._skipped_size = name, 1, 0
        elif name in _PARAGRAPHS:
            self._end_paragraph()
            self._preformatted += (1 - 2 * is_end) if name == "pre" else 0
        elif name in _LINES:
            self._end_line()
        elif name in _CELLS and is_end:
            self._line.append("\t")

    def end(self) -> None:
        """The page ends; what an element said that is never closed was no menu."""
        said, self._skipped = self._skipped, []
        is_head, self._skipping, self._depth = self._skipping == "head", "", 0
        if not is_head:
            self._end_paragraph()
            for part in said:
                self._say(part)
        self._end_paragraph()

    def _say(self, text: str) -> None:
        if not text:
            return
        if not self._skipping:
            self._line.append(text)
            return
        self._skipped.append(text)
        self._skipped_size += len(text)
        if self._skipped_size > _LONGEST_SKIPPED:
            self.end()

    def _end_line(self) -> None:
        text = unescape("".join(self._line))
        self._line = []
        if self._preformatted > 0:
            self._lines += text.strip("\n").split("\n") if text.strip() else []
        elif text := "\t".join(
            _SPACE.sub(" ", cell).strip(" ") for cell in text.split("\t")
        ).strip():
            self._lines.append(text)

    def _end_paragraph(self) -> None:
        self._end_line()
        if self._lines:
            self._done.append("\n".join(self._lines) + "\n\n")
        self._lines = []
