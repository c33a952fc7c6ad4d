"""Keeping a mixture of experts in use: the load-balancing loss and the router's z-loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fourstage.model.experts import Routing


def balance_sum(routing: Sequence[Routing]) -> Tensor:
    """`sum_t mean_l E sum_e f_e p_e(t)`: over cells, the mean over layers.

    `p_e(t)` is the router's probability of expert e and `f_e` the share of tokens sent to it, which
    sums to the experts a token has (Fedus et al., *Switch Transformers*, 2022, eq. 4; Mixtral's
    convention). Divided by the cells of a step it is experts_per_token where all experts are used
    alike, and higher where the likely ones are those that are used most. Shares are those of the
    step before (`fourstage.model.experts.Loads`), so that the term is a sum over cells.
    """
    layers = [
        each.load.shape[0] * (each.logits.softmax(dim=-1) @ each.load.to(each.logits.dtype)).sum()
        for each in routing
    ]
    return torch.stack(layers).mean()


def router_z_sum(routing: Sequence[Routing]) -> Tensor:
    """`sum_t mean_l log(sum_e exp(logit_e(t)))^2` (Zoph et al., *ST-MoE*, 2022, eq. 5)."""
    return torch.stack([each.logits.logsumexp(dim=-1).square().sum() for each in routing]).mean()
