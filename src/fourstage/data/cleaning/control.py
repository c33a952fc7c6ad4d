"""Characters that are not seen: control, invisible, direction marks, halves of characters."""

from __future__ import annotations

import re

from fourstage.data.cleaning.verdict import KEPT, Verdict, above

# From one in so many characters on that could not be decoded a text is lost.
LOST_SHARE = 1 / 500
LEAST_LOST = 3
# Joiners change how letters of these scripts join, and join emoji: they stay behind them.
_JOINED = (
    "\u0600-\u06ff\u0700-\u07ff\u0840-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff"
    "\ufe70-\ufefc"
)
_EMOJI = "\u00a9\u00ae\u203c-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff\U000e007f"
_BREAKS = "\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
_INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u17b4\u17b5\u180e\u200b"
    "\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
)
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17)
)
_TAGS = "\U000e0000-\U000e007f"
_HALVES = "\ud800-\udfff"
# Three searches for anything at all, each by a table of the engine and not by comparing ranges.
_ANY = re.compile(f"[{_BREAKS}{_INVISIBLE}{_HALVES}\u200c\u200d\ufdd0-\ufdef\ufffe\uffff]")
_HIGH = re.compile("[\U00010000-\U0010ffff]")
_ANY_HIGH = re.compile(f"[{_NONCHARACTERS}{_TAGS}]")
_LINE_BREAK = re.compile(f"\r\n|[{_BREAKS}]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# Tags spell regions on a black flag, and are a way to hide text anywhere else.
_REMOVED = re.compile(
    f"[{_INVISIBLE}{_NONCHARACTERS}{_HALVES}]"
    f"|(?<![{_JOINED}{_EMOJI}])[\u200c\u200d]"
    f"|(?<![\U0001f3f4{_TAGS}])[{_TAGS}]+"
)


def control(text: str) -> Verdict:
    """Removes characters that are not seen; drops text of which much could not be decoded.

    Line ends of other systems become "\n". Pairs of surrogates are joined, single ones removed.
    Joiners stay in scripts and emoji that need them. Dropped is text with three replacement
    characters (U+FFFD) or more, if they are more than one in 500.
    """
    lost = text.count("\ufffd")
    if lost >= LEAST_LOST and (fault := above("replacement", lost / len(text), LOST_SHARE)):
        return fault
    if not _ANY.search(text) and not (_HIGH.search(text) and _ANY_HIGH.search(text)):
        return KEPT
    edits: dict[str, int] = {}
    text, edits["line_ends"] = _LINE_BREAK.subn("\n", text)
    text, edits["surrogates"] = _PAIR.subn(_joined, text)
    text, edits["removed"] = _REMOVED.subn("", text)
    edits = {key: count for key, count in edits.items() if count}
    return Verdict(text=text, edits=edits) if edits else KEPT


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")
