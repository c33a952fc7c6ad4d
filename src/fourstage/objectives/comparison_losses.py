"""Losses of a comparison: Bradley-Terry, and two models of ties; pure functions of scores."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Ties = Literal["drop", "davidson", "rao_kupper"]


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margins: Tensor | None = None,
    centring: float = 0.0,
    smoothing: float = 0.0,
) -> Tensor:
    """`-(1 - e) log sigmoid(d) - e log sigmoid(-d) + centring (r_c + r_r)^2`, each [pairs] ->
    [pairs], with `d = r_c - r_r - margin` and `e` the smoothing.

    Ouyang et al. (InstructGPT, 2022), eq. 1; the margin is that of Llama 2 (Touvron et al., 2023,
    eq. 2), centring that of Eisenstein et al. (*Helping or Herding?*, 2023). Smoothing takes a
    share e of the labels for flipped (Wang et al., *Secrets of RLHF II*, 2024, section 3.2).
    """
    difference = chosen - rejected
    difference = difference if margins is None else difference - margins
    loss = -F.logsigmoid(difference)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * F.logsigmoid(-difference)
    return loss + centring * (chosen + rejected).square() if centring else loss


def with_ties_loss(
    difference: Tensor, tied: Tensor, tie: Tensor, model: Ties, smoothing: float = 0.0
) -> Tensor:
    """`-log` of the likelihood of each outcome, [pairs] -> [pairs].

    `davidson` (1970, eq. 2.2): with `n = exp(tie)`, the first wins, ties or loses as `exp(d / 2) :
    n : exp(-d / 2)`. `rao_kupper` (1967, eq. 2.5): with a threshold `h = softplus(tie)`, the first
    wins with `sigmoid(d - h)` and loses with `sigmoid(-d - h)`; the rest are ties.

    Args:
        difference: score of the better less that of the worse, less the margin.
        tied: bool: neither was better.
        tie: the parameter that makes ties likely, one number.
        smoothing: share of the decided labels that is taken for flipped.
    """
    if model == "davidson":
        options = torch.stack([difference / 2, -difference / 2, tie.expand_as(difference)])
        won, lost, even = (options.logsumexp(0) - options).unbind()
    else:
        threshold = F.softplus(tie)
        won = -F.logsigmoid(difference - threshold)
        lost = -F.logsigmoid(-difference - threshold)
        even = won + lost - torch.log(torch.expm1(2 * threshold))
    decided = (1 - smoothing) * won + smoothing * lost if smoothing else won
    return torch.where(tied, even, decided)


def tie_start(share: float, model: Ties) -> float:
    """The parameter with which answers of equal score are tied as often as `share`.

    Training begins there, since a single number at the rate of the weights would come late.
    """
    share = min(max(share, 1e-3), 1 - 1e-3)
    if model == "davidson":
        return float(torch.tensor(2 * share / (1 - share)).log())
    # 1 - 2 sigmoid(-h) = share, so h = log((1 + share) / (1 - share)).
    threshold = torch.tensor((1 + share) / (1 - share)).log()
    return float(torch.log(torch.expm1(threshold)))
