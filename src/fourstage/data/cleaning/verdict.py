"""What a step of cleaning says of a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """Kept as it is, kept with edits, or dropped.

    Attributes:
        rule: the rule for which the document is dropped, such as "symbol_ratio"; empty: it is kept.
        detail: the number that decided, such as "0.23 > 0.1".
        text: the document as edited; None: unchanged.
        edits: what was changed -> how often.
    """

    rule: str = ""
    detail: str = ""
    text: str | None = None
    edits: Mapping[str, int] = field(default_factory=dict)


KEPT = Verdict()


def below(rule: str, value: float, least: float) -> Verdict | None:
    """Dropped for `rule` where the value is below `least`; None where it is not."""
    return Verdict(rule, f"{value:.4g} < {least:g}") if value < least else None


def above(rule: str, value: float, most: float) -> Verdict | None:
    """Dropped for `rule` where the value is above `most`; None where it is not."""
    return Verdict(rule, f"{value:.4g} > {most:g}") if value > most else None
