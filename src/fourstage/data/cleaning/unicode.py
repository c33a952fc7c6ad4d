"""Text that was decoded by the wrong table, and characters in pieces, put right."""

from __future__ import annotations

import re
import unicodedata

from fourstage.data.cleaning.verdict import KEPT, Verdict
from fourstage.extras import require

# Tables by which UTF-8 is wrongly decoded in practice, as ftfy knows them.
_TABLES = (
    "latin-1",
    "cp1250",
    "cp1251",
    "cp1252",
    "cp1253",
    "cp1254",
    "cp1257",
    "iso8859-2",
    "mac-roman",
    "cp437",
)


def _decoded(low: int, high: int) -> str:
    """What bytes from low to below high become by any of the tables."""
    bytes_ = bytes(range(low, high))
    return "".join(sorted({c for table in _TABLES for c in bytes_.decode(table, "ignore")}))


# A character of two bytes or more of UTF-8 begins with 0xC2 to 0xF4 and goes on with 0x80 to 0xBF;
# 0xA0 became a space at times. Text without such a pair holds no mojibake.
_SUSPECT = re.compile(
    f"[{re.escape(_decoded(0xC2, 0xF5))}]"
    f"(?:[{re.escape(_decoded(0x80, 0xC0))}]|(?<=[\u00c2\u00c3\u00e2]) )"
)
# Control characters of Latin-1 are in fact what another table has at their bytes.
_MISPLACED = re.compile("[\u0080-\u0084\u0086-\u009f]")


def repair(text: str) -> Verdict:
    """Repairs mojibake ("cafÃ©" to "café") and composes characters (NFC).

    Only lines that hold a pair of characters as mojibake has them are given to ftfy (Speer 2019),
    which judges whether it is one. Quotes, ligatures, widths and HTML stay as they are.
    """
    edits: dict[str, int] = {}
    repaired = text
    if not text.isascii():
        if _is_suspect(text):
            repaired, edits["mojibake"] = _repair_lines(text)
        if not unicodedata.is_normalized("NFC", repaired):
            repaired, edits["composed"] = unicodedata.normalize("NFC", repaired), 1
    if repaired == text:
        return KEPT
    return Verdict(text=repaired, edits={key: count for key, count in edits.items() if count})


def _repair_lines(text: str) -> tuple[str, int]:
    ftfy = require("ftfy", "data", "to repair text that was decoded by the wrong table")
    lines = text.split("\n")
    changed = 0
    for number, line in enumerate(lines):
        if _is_suspect(line) and (better := ftfy.fix_encoding(line)) != line:
            lines[number], changed = better, changed + 1
    return "\n".join(lines), changed


def _is_suspect(text: str) -> bool:
    return bool(_SUSPECT.search(text) or _MISPLACED.search(text))
