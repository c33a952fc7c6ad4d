"""Votes between two answers: which is better, or neither."""

from __future__ import annotations

import re
from typing import Any

from fourstage.data.shapes.row import Malformed
from fourstage.data.shapes.values import Columns, kind_of, number, plain_text

SCORE_STEMS = ("score", "rating", "reward")
# How much better the second answer is, negative for the first (HelpSteer2, HelpSteer3).
_STRENGTHS = ("preference_strength", "overall_preference")
_VOTES = (
    *("preference", "winner", "better_response_id", "better", "preferred", "label", "labels"),
    *("choice", "safer_response_id", "safer"),
)
_ANNOTATOR = re.compile(r"annotator_?\d+")
_TIES = {"tie", "ties", "draw", "equal", "same", "both", "neither", "none", "tie (bothbad)"}
_LAST_SIGN = re.compile(r"(?:.*[^0-9a-z]|[a-z]+(?=\d))?(\d|[a-z])")


def vote(columns: Columns, suffixes: tuple[str, str]) -> tuple[int, float]:
    """Which of two answers is better: -1 the first, 1 the second, 0 neither; and by how much.

    Of several annotators most decide, as in PandaLM (Wang et al. 2023, arXiv:2306.05087), where 1
    and 2 name the answers and 0 is a tie.

    Args:
        suffixes: of the keys of the two answers, as `("_a", "_b")`.

    Returns:
        The verdict, and how strong it is on the row's own scale; 0 where that is not told.

    Raises:
        Malformed: there is no vote, or one that names neither answer.
    """
    for name in _STRENGTHS:
        strength = number(columns.get(name))
        if strength is not None:
            return (strength > 0) - (strength < 0), strength
    names = [key for key in columns.names() if _ANNOTATOR.fullmatch(key)]
    if not names:
        name = columns.first(_VOTES)
        if name is None:
            raise Malformed(
                "two answers and nothing that says which is better: add the key 'winner'"
            )
        names = [name]
    sides = [_side(columns[name], suffixes, columns.written(name)) for name in names]
    total = sum(sides)
    return (total > 0) - (total < 0), 0.0


def _side(value: Any, suffixes: tuple[str, str], name: str) -> int:
    signs = [suffix.removeprefix("_") for suffix in suffixes]
    found = number(value)
    if found is not None:
        side = _by_number(found, signs)
    else:
        text = (plain_text(value) or "").strip().lower()
        match = _LAST_SIGN.fullmatch(text)
        sign = match.group(1) if match else ""
        side = 0 if text in _TIES else {signs[0]: -1, signs[1]: 1}.get(sign)
    if side is None:
        told = f"{value!r:.20}" if isinstance(value, (str, float)) else kind_of(value)
        raise Malformed(f"{name} is {told}: write {signs[0]}, {signs[1]} or tie")
    return side


def _by_number(value: float, signs: list[str]) -> int | None:
    """Numbers name answers that are numbered; which of a and b is 0 or 1 nobody knows."""
    if signs == ["0", "1"]:
        return {0.0: -1, 1.0: 1, -1.0: 0, 0.5: 0}.get(value)
    if signs != ["1", "2"] or not (value == 0 or 1 <= value <= 2):
        return None
    # Means of several votes lie between 1 and 2.
    return 0 if value in (0, 1.5) else -1 if value < 1.5 else 1
