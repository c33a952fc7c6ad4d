"""Numbers as a reader wants them: three figures, a unit, and the 95% interval beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from fourstage.reporting.html import Markup, escape, join, tag

if TYPE_CHECKING:
    from fourstage.model.config import ModelConfig

NONE = "–"
SPACE = "\u202f"  # narrow, never broken
MINUS = "\u2212"
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Number:
    """A measured value and, where it was estimated, its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite int or float; booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figures(value: float | None, digits: int | None = None) -> str:
    """A plain number: thousands set apart, `digits` decimals or about three significant ones."""
    if value is None or not math.isfinite(value):
        return NONE
    if digits is None:
        size = abs(value)
        if float(value).is_integer() and size < 1e15:
            digits = 0
        elif size != 0 and size < 1e-3:
            return power_of_ten(value)
        else:
            digits = 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.1 else 4
    return f"{value:,.{digits}f}".replace(",", SPACE).replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A plain number that shows its sign, `+0.250`."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def power_of_ten(value: float) -> str:
    """`3.1 × 10¹⁵`."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else NONE
    exponent = math.floor(math.log10(abs(value)))
    mantissa = value / 10**exponent
    if abs(round(mantissa, 1)) >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:.1f}{SPACE}×{SPACE}10{str(exponent).translate(_SUPERSCRIPT)}".replace(
        "-", MINUS
    )


def compact(value: float | None) -> str:
    """`1.05 M`, `37.2 k`, `812`: counts of tokens, parameters, documents."""
    if value is None or not math.isfinite(value):
        return NONE
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
            text = f"{scaled:.{digits}f}"
            return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{SPACE}{letter}"
    return figures(value, 0 if float(value).is_integer() else None)


def parameters(config: ModelConfig) -> str:
    """`46.7 B parameters (12.9 B a token)`: all, and of a mixture those that a token meets."""
    active = config.active_parameters()
    met = f" ({compact(active)} a token)" if config.experts else ""
    return f"{compact(config.parameters())} parameters{met}"


def duration(seconds: float | None) -> str:
    """`9 min 54 s`; two units at most."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    total = round(seconds)
    days, rest = divmod(total, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    while units[0][0] == 0:
        units.pop(0)
    return " ".join(f"{count}{SPACE}{unit}" for count, unit in units[:2] if count)


def share(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{100 * value:.{digits}f}{SPACE}%".replace("-", MINUS)


def storage(count: float | None) -> str:
    """Bytes with a decimal unit."""
    if count is None or not math.isfinite(count):
        return NONE
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g}{SPACE}{unit}"
    return f"{count:.0f}{SPACE}B"


def measured(number: Number | None, digits: int | None = 3, unit: str = "") -> Markup:
    """The value with its interval in grey: `0.912 [0.887, 0.935]`."""
    if number is None:
        return tag("span", NONE, class_="absent")
    value = tag("span", figures(number.value, digits), unit and f"{SPACE}{unit}", class_="value")
    if not number.has_interval:
        return value
    low, high = figures(number.low, digits), figures(number.high, digits)
    return join(value, " ", tag("span", f"[{low}, {high}]", class_="interval"))


def plain(value: Any) -> Markup:
    """Any JSON value of a run as a short text."""
    if value is None or value == "" or value == [] or value == {}:
        return tag("span", NONE, class_="absent")
    if isinstance(value, bool):
        return escape("yes" if value else "no")
    if is_number(value):
        return escape(figures(value))
    if isinstance(value, dict):
        return join(*_between(", ", [join(f"{key} ", plain(item)) for key, item in value.items()]))
    if isinstance(value, list | tuple):
        return join(*_between(", ", [plain(item) for item in value]))
    return escape(value)


def _between(separator: str, parts: list[Markup]) -> list[Any]:
    return [piece for part in parts for piece in (separator, part)][1:]
