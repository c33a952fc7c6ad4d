"""The kinds of reward model that a recipe may ask for."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fourstage.recipe.data import NonNegative, PositiveInt, Section
from fourstage.recipe.numbers import Real


class RewardKind(Section):
    """What a reward model learns from, and of how many heads and members it is made.

    `objective` says what a row of data.preferences tells: `bradley_terry` which of two or more
    answers is better, `regression` a score of an answer, `binary` whether it is good, `process`
    which steps of it are right. `pairs_per_step` counts rows: pairs, rankings, answers.

    Attributes:
        margin: a told margin, or difference of scores, times this is what the better answer has to
            lead by (Llama 2).
        label_smoothing: share of the labels that is taken for flipped.
        ties: what is made of answers that are equally good: nothing, or a third outcome.
        heads: name -> weight. A row says which head it is about (`head`), or has a score under the
            name of each; the reward is the weighted sum of their normalised scores.
        ensemble: models that differ by the seed of their heads and the order of the data.
        caution: standard deviations over them that are taken off their mean.
        likelihood: whether the chat model's own log-probability of an answer's least likely token
            counts beside the score, which learns what to add to it; its weight is that of a
            logistic regression on the comparisons, one for all heads.
    """

    objective: Literal["bradley_terry", "regression", "binary", "process"] = "bradley_terry"
    centring: NonNegative = 0.01
    margin: NonNegative = 0.0
    label_smoothing: Annotated[Real, Field(ge=0, lt=0.5)] = 0.0
    ties: Literal["drop", "davidson", "rao_kupper"] = "drop"
    heads: dict[str, Real] = Field(default_factory=dict)
    ensemble: PositiveInt = 1
    caution: NonNegative = 1.0
    likelihood: bool = False
    language_coefficient: NonNegative = 0.0

    @model_validator(mode="after")
    def _fits_its_objective(self) -> RewardKind:
        if self.objective == "bradley_terry":
            return self
        changed = self.changed()
        for name in ("margin", "label_smoothing", "ties", "likelihood", "language_coefficient"):
            if name in changed:
                raise ValueError(
                    f"{name}={getattr(self, name)} is of objective=bradley_terry: leave it out, or "
                    f"leave out objective={self.objective}"
                )
        if self.heads and self.objective == "process":
            raise ValueError("heads are of whole answers: leave them out, or objective=process")
        return self

    @model_validator(mode="after")
    def _is_read(self) -> RewardKind:
        changed = self.changed()
        if self.objective == "regression" and "centring" in changed:
            raise ValueError(
                f"centring={self.centring:g} is of comparisons, whose scores have no zero of their "
                "own; those of objective=regression are given: leave it out"
            )
        if self.ensemble == 1 and "caution" in changed:
            raise ValueError(
                f"caution={self.caution:g} is of several models: write ensemble=4, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _has_heads_that_count(self) -> RewardKind:
        if len(self.heads) == 1:
            raise ValueError(
                f"heads names {next(iter(self.heads))!r} alone, and one head needs no name: leave "
                "it out, or name two"
            )
        if self.heads and not any(self.heads.values()):
            raise ValueError("heads all weigh 0, so nothing would be rewarded: write 1 for one")
        wrong = [name for name in self.heads if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]
        if wrong:
            raise ValueError(f"heads names {wrong[0]!r}: write small letters, digits and _ alone")
        return self

    @property
    def rows_together(self) -> int:
        """Answers of one row of data.preferences, as far as is known before it is read."""
        return 2 if self.objective == "bradley_terry" else 1
