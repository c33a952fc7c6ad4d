"""Plain numbers and fractions as exact values: `1,250`, `-3.50`, `$7`, `3/4`, `\\frac{3}{4}`."""

from __future__ import annotations

import re
from fractions import Fraction

# A longer text is no number, and costs time that grows with its square.
_LONGEST = 400
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_VALUE = re.compile(rf"([-+]?)\s*({_PLAIN})(?:\s*/\s*({_PLAIN}))?")
_MIXED = re.compile(r"([-+]?)(\d+)\s+(\d+)\s*/\s*(\d+)")
_FRACTION = re.compile(r"\\[dt]?frac\s*{\s*([^{}]*)}\s*{\s*([^{}]*)}|\\[dt]?frac(\d)(\d)")
# Words of a unit, and what LaTeX puts around numbers.
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*{([^{}]*)}")
_SPACES = re.compile(r"\\[,;:! ]|~|\\left|\\right|\\\(|\\\)")
_MONEY = re.compile(r"\\?[$€£¥]")
# A unit: no digit, no operation; and no word or variable that makes another number of it.
_UNIT = re.compile(r"(?:\\?%|°|\\circ|\^|[^\W\d_]|[.{}\s/'-])*", re.UNICODE)
_NO_UNIT = re.compile(
    r"\s*(?:[abciknxyz]|pi|sqrt|dozens?|hundreds?|thousands?|[mbtr]illions?|hal(?:f|ves))\b",
    re.IGNORECASE,
)
_NAMED = re.compile(r"^\s*[A-Za-z]\w*\s*=\s*")


def exact_value(text: str) -> Fraction | None:
    """The number that a text is, with at most a name before it and a unit behind; None if none.

    Currency and percent signs are passed over: `$5`, `5 dollars` and `5%` are 5. `72 or 73`, `2x`,
    `2 million` and expressions such as `2+3` are no plain numbers.
    """
    if len(text) > _LONGEST:
        return None
    text = _SPACES.sub("", _MONEY.sub("", _TEXT.sub(r" \1", text)))
    text = text.replace("−", "-").replace("**", "").strip().rstrip(".")
    text = _NAMED.sub("", text)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]}", text).strip()
    text = re.sub(r"^([-+])\s+", r"\1", text)
    if mixed := _MIXED.match(text):
        sign, whole, above, below = mixed.groups()
        return _signed(sign, whole, f"{above}/{below}", text[mixed.end() :])
    found = _VALUE.match(text)
    if found is None:
        return None
    sign, above, below = found.groups()
    return _signed(sign, "0", f"{above}/{below}" if below else above, text[found.end() :])


def _signed(sign: str, whole: str, part: str, unit: str) -> Fraction | None:
    if not _UNIT.fullmatch(unit) or _NO_UNIT.match(unit):
        return None
    above, _, below = part.replace(",", "").partition("/")
    divisor = Fraction(below) if below else Fraction(1)
    if divisor == 0:
        return None
    value = Fraction(whole) + Fraction(above) / divisor
    return -value if sign == "-" else value


def equal_numbers(answer: str, truth: Fraction, tolerance: float = 0.0) -> bool:
    """Whether an answer is that number, within `tolerance` times its size."""
    value = exact_value(answer)
    if value is None:
        return False
    return value == truth or abs(value - truth) <= Fraction(tolerance) * abs(truth)
