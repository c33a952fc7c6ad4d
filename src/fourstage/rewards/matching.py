"""Responses against a text: equal, matching a pattern, or the right letter of a multiple choice."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from typing import Any, Literal

from fourstage.errors import InputError
from fourstage.rewards.contracts import EachAlone, Item, Outcome
from fourstage.rewards.extraction import chosen_letter, told_answer, without_thought

Place = Literal["whole", "answer", "contains"]
Normalise = Literal["none", "spaces", "squad"]
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TRUE_LETTER = re.compile(r"\(?([A-Za-z])[).:]?(?:\s.*)?", re.DOTALL)


class Exact(EachAlone):
    """1 where the response is the ground truth, or one of several.

    Args:
        place: `whole` compares the response behind its reasoning, `answer` what it tells as its
            answer (see `extraction.told_answer`), `contains` asks that the truth stands in it.
        normalise: `none`; `spaces` ignores case and how much space there is; `squad` punctuation
            and articles, too (Rajpurkar et al., *SQuAD*, 2016, the official evaluation).
        truth: the column of the ground truth; a list has several right answers.
    """

    def __init__(
        self, place: Place = "whole", normalise: Normalise = "spaces", truth: str | None = None
    ):
        self.place, self.normalise, self.truth = place, normalise, truth

    def unfit(self, item: Item) -> str:
        if any(map(self._normal, self._truths(item))):
            return ""
        return f"the row has no {self.truth or 'ground truth'} to compare with"

    def of(self, item: Item) -> Outcome:
        truths = [each for each in map(self._normal, self._truths(item)) if each]
        said = without_thought(item.response)
        if self.place == "answer":
            told = told_answer(item.response)
            if told is None:
                return Outcome(0.0, note="no answer")
            said = told
        normal = self._normal(said)
        if self.place == "contains":
            is_right = any(_contains(normal, each) for each in truths)
        else:
            is_right = normal in truths
        return Outcome(float(is_right), note=said.strip()[:80])

    def _truths(self, item: Item) -> list[str]:
        value = item.value(self.truth)
        values = value if isinstance(value, list) else [value]
        return [str(each) for each in values if each is not None]

    def _normal(self, text: str) -> str:
        if self.normalise == "none":
            return text.strip()
        text = text.casefold()
        if self.normalise == "squad":
            text = _ARTICLES.sub(" ", text.translate(_PUNCTUATION))
        return " ".join(text.split())


def _contains(text: str, part: str) -> bool:
    """Whether a part stands there and is not cut out of a longer word or number."""
    before, after = (r"(?<!\w)" if part[0].isalnum() else ""), r"(?!\w)"
    return bool(re.search(before + re.escape(part) + (after if part[-1].isalnum() else ""), text))


class Pattern(EachAlone):
    """1 where a regular expression of Python matches; to be run apart, as some take for ever.

    Args:
        pattern: the expression, with `.` matching line ends, too.
        column: of the row, that holds the row's own expression instead.
        whole: whether it must match the whole response, and not only stand in it.
    """

    def __init__(self, pattern: str | None = None, column: str | None = None, whole: bool = False):
        self.pattern, self.column, self.whole = pattern, column, whole

    def start(self, say: Callable[[str], None]) -> None:
        if self.pattern is not None and (fault := _broken(self.pattern)):
            raise InputError(fault)

    def unfit(self, item: Item) -> str:
        if self.pattern is not None:
            return ""
        value = item.value(self.column)
        if not isinstance(value, str) or not value:
            return f"the row has no pattern in {self.column or 'its ground truth'}"
        return _broken(value)

    def of(self, item: Item) -> Outcome:
        pattern = self.pattern if self.pattern is not None else item.value(self.column)
        expression = re.compile(pattern, re.DOTALL)
        match = expression.fullmatch if self.whole else expression.search
        return Outcome(float(match(item.response.strip()) is not None))


def _broken(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"the pattern {pattern[:60]!r} is broken: {error}"
    return ""


class Choice(EachAlone):
    """1 where the response settles on the right letter of a multiple choice.

    Args:
        letters: those there are.
        extraction: `lenient` takes the last letter that stands alone where no answer is told.
        truth: the column of the right one: a letter, or its number from 0.
    """

    def __init__(
        self,
        letters: str = "ABCDEFGHIJ",
        extraction: Literal["strict", "lenient"] = "strict",
        truth: str | None = None,
    ):
        self.letters, self.extraction, self.truth = letters.upper(), extraction, truth

    def unfit(self, item: Item) -> str:
        value = item.value(self.truth)
        if self._right(value):
            return ""
        return f"{value!r} is no letter of {self.letters}, and no number of one from 0"

    def of(self, item: Item) -> Outcome:
        letter = chosen_letter(item.response, self.letters, self.extraction == "lenient")
        is_right = letter == self._right(item.value(self.truth))
        return Outcome(float(is_right), note=letter or "no letter")

    def _right(self, value: Any) -> str:
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return self.letters[value] if 0 <= value < len(self.letters) else ""
        found = _TRUE_LETTER.fullmatch(value.strip()) if isinstance(value, str) else None
        letter = found[1].upper() if found else ""
        return letter if letter and letter in self.letters else ""
