"""The losses on comparisons as data: which formula, and its numbers.

    preference = preference_of("simpo", gamma=1.4)
    objective = DirectPreference(preference)      # fourstage.objectives.preference

Imports no torch, so that a recipe can be checked without it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from fourstage.errors import InputError, nearest


@dataclass(frozen=True)
class Preference:
    """One loss on comparisons; defaults are those of its paper.

    Attributes:
        beta: what a difference of log-ratios is multiplied by. In `ipo`, 1 / (2 beta) is the
            difference aimed at; in `orpo`, beta is lambda, the weight of the odds ratio.
        label_smoothing: share of comparisons that are taken to be labelled the wrong way round.
        gamma: the margin of `simpo`, in units of the loss (beta times the difference).
        by_length: for `dpo` and `hinge`, log-ratios a token instead of a response.
        nll_coefficient: of the next-token loss of the chosen responses, a mean over their tokens.
        has_reference: whether reference log-probabilities are read.
        source: the paper.
    """

    name: str
    loss: str
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.0
    by_length: bool = False
    nll_coefficient: float = 0.0
    has_reference: bool = True
    source: str = ""

    def check(self) -> None:
        """Refuses numbers that no loss is made of.

        Raises:
            InputError: each fault with what to write instead.
        """
        faults = []
        if self.beta <= 0:
            faults.append(f"beta={self.beta:g} is not above 0: write a number such as 0.1")
        if not 0 <= self.label_smoothing < 0.5:
            faults.append(
                f"label_smoothing={self.label_smoothing:g} would turn the labels round: write at "
                "least 0 and less than 0.5"
            )
        if self.label_smoothing and self.loss not in ("dpo", "simpo", "cpo"):
            faults.append(
                f"label_smoothing={self.label_smoothing:g} is not of {self.name}: leave it out, or "
                "write cdpo"
            )
        if self.gamma and self.loss != "simpo":
            faults.append(f"gamma={self.gamma:g} is of simpo, not {self.name}: leave it out")
        if self.by_length and self.loss not in ("dpo", "hinge"):
            faults.append(f"by_length is of dpo and hinge, not {self.name}: leave it out")
        if self.nll_coefficient < 0:
            faults.append(f"nll_coefficient={self.nll_coefficient:g} is below 0: write 0 or more")
        if faults:
            raise InputError(*faults)


_TABLE = (
    Preference("dpo", "dpo", source="Rafailov et al., 2023"),
    Preference("cdpo", "dpo", label_smoothing=0.1, source="Mitchell, 2023"),
    Preference("ipo", "ipo", source="Azar et al., 2023"),
    Preference("hinge", "hinge", source="Zhao et al. (SLiC), 2023; Liu et al. (RSO), 2023"),
    Preference(
        "simpo", "simpo", beta=2.0, gamma=1.0, has_reference=False, source="Meng et al., 2024"
    ),
    Preference(
        "cpo", "cpo", nll_coefficient=1.0, has_reference=False, source="Xu et al. (CPO), 2024"
    ),
    Preference(
        "orpo", "orpo", nll_coefficient=1.0, has_reference=False, source="Hong et al., 2024"
    ),
)
PREFERENCES = {each.name: each for each in _TABLE}


def preference_of(name: str, **changes: Any) -> Preference:
    """The loss of that name with some of its fields changed, checked.

    Raises:
        InputError: no such loss or field, or numbers that no loss is made of.
    """
    if name not in PREFERENCES:
        raise InputError(
            f"preference loss {name!r} is not one of {', '.join(PREFERENCES)}"
            f"{nearest(name, PREFERENCES)}"
        )
    known = {field.name for field in fields(Preference)} - {
        "name",
        "loss",
        "has_reference",
        "source",
    }
    strange = [key for key in changes if key not in known]
    if strange:
        raise InputError(
            *(f"a preference loss has no field {key!r}{nearest(key, known)}" for key in strange)
        )
    preference = replace(PREFERENCES[name], **changes)
    preference.check()
    return preference
