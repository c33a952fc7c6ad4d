"""Losses on comparisons of two responses: pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.objectives.preferences import Preference


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
