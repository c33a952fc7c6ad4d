"""Losses on comparisons of two responses: pure functions, and a table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.errors import InputError, nearest


@dataclass(frozen=True)
class Responses:
    """One side of the pairs, [pairs] each.

    Attributes:
        logprobs: log-probability of each response, summed over its tokens.
        ref_logprobs: the same under the reference; zeros where the loss has none.
        tokens: of each response.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    tokens: Tensor

    @property
    def ratios(self) -> Tensor:
        """`log policy - log reference`, summed over tokens."""
        return self.logprobs - self.ref_logprobs

    @property
    def means(self) -> Tensor:
        """Log-probability a token."""
        return self.logprobs / self.tokens

    @property
    def mean_ratios(self) -> Tensor:
        return self.ratios / self.tokens


@dataclass(frozen=True)
class Preference:
    """One loss on comparisons; defaults are those of its paper.

    Attributes:
        beta: what a difference of log-ratios is multiplied by; 1 / (2 beta) is the difference that
            `ipo` aims at, and lambda the weight of the odds ratio in `orpo`.
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


def dpo(chosen: Responses, rejected: Responses, told: Preference) -> Tensor:
    """`-log sigmoid(beta Delta)`, `Delta` the difference of log-ratios, each summed over tokens.

    Rafailov et al. (*Direct Preference Optimization*, 2023), eq. 7. With `label_smoothing` e,
    `(1 - e)` times that and `e` times the loss of the pair turned round (conservative DPO,
    Mitchell, 2023). With `by_length`, log-ratios are a token's. A falling log-probability of chosen
    responses is normal: only the difference is asked for.
    """
    return _smoothed(told.beta * _difference(chosen, rejected, told.by_length), told)


def ipo(chosen: Responses, rejected: Responses, told: Preference) -> Tensor:
    """`(Delta - 1 / (2 beta))^2`, of log-ratios a token.

    Azar et al. (*A General Theoretical Paradigm*, 2023), eq. 17; a token's, as the authors' own
    results are, so that long responses do not weigh more.
    """
    return (_difference(chosen, rejected, by_length=True) - 1 / (2 * told.beta)).square()


def hinge(chosen: Responses, rejected: Responses, told: Preference) -> Tensor:
    """`max(0, 1 - beta Delta)`.

    SLiC (Zhao et al., 2023); of log-ratios to a reference as in RSO (Liu et al., 2023).
    """
    return torch.relu(1 - told.beta * _difference(chosen, rejected, told.by_length))


def simpo(chosen: Responses, rejected: Responses, told: Preference) -> Tensor:
    """`-log sigmoid(beta (mean logp_c - mean logp_r) - gamma)`, without a reference.

    Meng et al. (*SimPO*, 2024), eq. 6.
    """
    return _smoothed(told.beta * (chosen.means - rejected.means) - told.gamma, told)


def cpo(chosen: Responses, rejected: Responses, told: Preference) -> Tensor:
    """`-log sigmoid(beta (logp_c - logp_r))`, without a reference (Xu et al., *CPO*, 2024)."""
    return _smoothed(told.beta * (chosen.logprobs - rejected.logprobs), told)


def orpo(chosen: Responses, rejected: Responses, told: Preference) -> Tensor:
    """`-beta log sigmoid(log odds_c - log odds_r)`, `odds = p / (1 - p)`, `log p` a token's.

    Hong et al. (*ORPO*, 2024), eq. 6 and 7; beta is their lambda. The next-token loss of the chosen
    response is the other part (`nll_coefficient` 1).
    """
    return -told.beta * F.logsigmoid(_log_odds(chosen.means) - _log_odds(rejected.means))


LOSSES: dict[str, Callable[[Responses, Responses, Preference], Tensor]] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "simpo": simpo,
    "cpo": cpo,
    "orpo": orpo,
}


def rewards(responses: Responses, told: Preference) -> Tensor:
    """[pairs] what the loss takes a response to be worth: beta times its log-ratio, or its
    log-probability (a token's, in SimPO and ORPO) where there is no reference."""
    if told.has_reference:
        return told.beta * responses.ratios
    return told.beta * (responses.logprobs if told.loss == "cpo" else responses.means)


def _difference(chosen: Responses, rejected: Responses, by_length: bool) -> Tensor:
    if by_length:
        return chosen.mean_ratios - rejected.mean_ratios
    return chosen.ratios - rejected.ratios


def _smoothed(difference: Tensor, told: Preference) -> Tensor:
    loss = -F.logsigmoid(difference)
    if not told.label_smoothing:
        return loss
    other = -F.logsigmoid(-difference)
    return (1 - told.label_smoothing) * loss + told.label_smoothing * other


def _log_odds(logprobs: Tensor) -> Tensor:
    """`log(p / (1 - p))` of `log p`; a probability of 1 is taken as the largest one below it."""
    x = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    # Each form is exact on its own side of p = 1/2.
    rest = torch.where(x < -0.6931471805599453, torch.log1p(-x.exp()), (-torch.expm1(x)).log())
    return x - rest


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
