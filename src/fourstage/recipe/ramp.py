"""How many cells each step of pretraining reads: the same of all, or growing at the start."""

from __future__ import annotations

from bisect import bisect_left

from fourstage.recipe.data import PositiveInt, Section


class BatchRamp(Section):
    """The first step reads `from_tokens`; the batch is whole once `over_tokens` have been read.

    Linear in the tokens read, as in GPT-3 (Brown et al., *Language Models are Few-Shot Learners*,
    2020, appendix B: from 32 thousand tokens over the first 4 to 12 billion).
    """

    from_tokens: PositiveInt
    over_tokens: PositiveInt


class StepCells:
    """The cells of the endless stream of text that each step reads, as a function of the step.

    Attributes:
        batch_tokens: cells of a step behind the ramp.
        least: cells of the smallest step.
    """

    def __init__(self, batch_tokens: int, ramp: BatchRamp | None = None):
        self.batch_tokens = batch_tokens
        self.least = min(batch_tokens, ramp.from_tokens) if ramp else batch_tokens
        self._begins = [0]
        while ramp and self._begins[-1] < ramp.over_tokens:
            read = self._begins[-1]
            grown = (batch_tokens - self.least) * read // ramp.over_tokens
            self._begins.append(read + self.least + grown)

    @classmethod
    def of(cls, cells: int | StepCells) -> StepCells:
        """Steps of so many cells each, or the steps that were given."""
        return cls(cells) if isinstance(cells, int) else cells

    def begin(self, step: int) -> int:
        """The first cell of `step` (from 0): what the steps before it read."""
        ramped = len(self._begins) - 1
        if step <= ramped:
            return self._begins[step]
        return self._begins[-1] + (step - ramped) * self.batch_tokens

    def span(self, step: int) -> tuple[int, int]:
        """The first cell of `step`, and the first one behind it."""
        return self.begin(step), self.begin(step + 1)

    def steps_for(self, tokens: float) -> int:
        """The fewest steps that read so many cells."""
        if tokens <= self._begins[-1]:
            return bisect_left(self._begins, tokens)
        return len(self._begins) - 1 + -int(-(tokens - self._begins[-1]) // self.batch_tokens)
