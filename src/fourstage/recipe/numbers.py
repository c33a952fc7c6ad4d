"""Numbers as people write them: 1e-3, 10m, 4M, 1.5B, 3_000; times as 90s, 10m, 24h."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_SCALES = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)")


def _scaled(text: str, scales: dict[str, float], what: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    unit = match.group(2).lower() if match else None
    if match is None or unit not in scales:
        raise ValueError(f"{text!r} is not {what}")
    value = float(match.group(1).replace("_", "")) * scales[unit]
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not {what}")
    # 0.1 + 0.2 aside, 1.1M is meant to be the whole number 1,100,000.
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


def parse_number(text: str) -> float:
    """The number a person wrote; k, M, B and T (either case) stand for thousand to trillion.

    Raises:
        ValueError: it is not a number.
    """
    return _scaled(text, _SCALES, "a number (write for example 1500, 1e-3, 10M or 1.5B)")


def parse_seconds(text: str) -> float:
    """Seconds of a time such as 90, 90s, 10m, 2h or 1d.

    Raises:
        ValueError: it is not a time.
    """
    return _scaled(text, _SECONDS, "a time (write for example 90s, 10m or 24h)")


def _number_before(value: Any) -> Any:
    """YAML reads `1e-3` as a string and `yes` as a bool: the first is a number, the second not."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return parse_number(value) if isinstance(value, str) else value


def _seconds_before(value: Any) -> Any:
    return parse_seconds(value) if isinstance(value, str) else _number_before(value)


Whole = Annotated[int, BeforeValidator(_number_before)]
Real = Annotated[float, BeforeValidator(_number_before)]
Seconds = Annotated[float, BeforeValidator(_seconds_before)]
