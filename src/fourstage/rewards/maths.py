"""Final answers against the ground truth: 1 where they are equal, else 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from fourstage.data.shapes.truth import final_answer
from fourstage.extras import require
from fourstage.rewards.contracts import EachAlone, Item, Outcome
from fourstage.rewards.extraction import last_number, names_a_place, told_answer, without_thought
from fourstage.rewards.numbers import equal_numbers, exact_value

Extraction = Literal["strict", "lenient"]


class _Maths(EachAlone):
    """What both verifiers share: where truth and answer are found."""

    def __init__(self, extraction: Extraction = "strict", truth: str | None = None):
        self.extraction, self.truth = extraction, truth

    def true_answer(self, item: Item) -> str:
        """The end result of the ground truth; empty where there is none."""
        value = item.value(self.truth)
        text = "" if value is None or isinstance(value, bool) else str(value).strip()
        return final_answer(text) or text

    def advice(self, items: Sequence[Item]) -> str:
        """That a bare number is no answer, where truths are such and no prompt asks for more."""
        if self.extraction == "lenient" or not items:
            return ""
        bare = all(exact_value(str(item.value(self.truth)).strip()) is not None for item in items)
        if not bare or any(names_a_place(item.asked) for item in items):
            return ""
        return (
            "the ground truths are bare numbers, and extraction: strict finds an answer only in "
            "\\boxed{...}, behind #### or after 'The answer is'; for models that answer with the "
            "number alone write extraction: lenient, or kind: exact"
        )

    def _lacks(self, item: Item) -> str:
        if self.true_answer(item):
            return ""
        return f"the row has no {self.truth or 'ground truth'} to check an answer by"


class Numbers(_Maths):
    """Plain numbers and fractions, compared exactly; see `numbers.exact_value` for what is one.

    Args:
        extraction: `strict` takes the answer where an answer is told (see
            `extraction.told_answer`), and a response without such a place is wrong; `lenient` takes
            the last number then.
        truth: the column of the ground truth, of which the end result counts (`#### 1,250`).
        tolerance: by how much of its size an answer may differ.
    """

    def __init__(
        self, extraction: Extraction = "strict", truth: str | None = None, tolerance: float = 0.0
    ):
        super().__init__(extraction, truth)
        self.tolerance = tolerance

    def unfit(self, item: Item) -> str:
        if lacks := self._lacks(item):
            return lacks
        if exact_value(self.true_answer(item)) is None:
            return (
                f"the ground truth {self.true_answer(item)[:60]!r} is no plain number or "
                "fraction: write verifier: math_verify for formulas"
            )
        return ""

    def of(self, item: Item) -> Outcome:
        truth = exact_value(self.true_answer(item))
        assert truth is not None, "it is fit"
        answer = told_answer(item.response)
        if answer is None and self.extraction == "lenient":
            answer = last_number(item.response)
        is_right = answer is not None and equal_numbers(answer, truth, self.tolerance)
        return Outcome(float(is_right), note=answer or "no answer")


class Formulas(_Maths):
    """Formulas by math-verify (Kydlíček, 2025): equal as sympy sees them.

    It evaluates what a model wrote, and can take for ever: to be run apart. `strict` and `lenient`
    as of `Numbers`; `lenient` leaves finding the answer to math-verify.
    """

    def start(self, say: Callable[[str], None]) -> None:
        self._library()

    def unfit(self, item: Item) -> str:
        return self._lacks(item)

    def of(self, item: Item) -> Outcome:
        library = self._library()
        gold = self._parsed(library, self.true_answer(item))
        if not gold:
            return Outcome(fault=f"math-verify cannot read {self.true_answer(item)[:60]!r}")
        told = told_answer(item.response)
        plain = exact_value(self.true_answer(item))
        if told is not None and plain is not None and exact_value(told) is not None:
            # Units are no variables, and nothing is rounded.
            return Outcome(float(equal_numbers(told, plain)), note=told)
        if told is not None:
            answer = self._parsed(library, told)
        elif self.extraction == "lenient":
            answer = library.parse(without_thought(item.response), parsing_timeout=None)
        else:
            return Outcome(0.0, note="no answer")
        # Time is limited from outside, where a signal may not get through.
        is_right = library.verify(gold, answer, timeout_seconds=None)
        return Outcome(float(is_right), note=told or "")

    def _library(self) -> Any:
        return require("math_verify", "math", "for rl.rewards of verifier: math_verify")

    @staticmethod
    def _parsed(library: Any, answer: str) -> Any:
        """An answer as math-verify reads it, which finds LaTeX between dollars alone."""
        text = answer if "$" in answer else f"${answer}$"
        return library.parse(text, parsing_timeout=None) or library.parse(
            answer, parsing_timeout=None
        )
