"""Policy losses from probability ratios: at which level the ratio is, what is clipped.

All are of trained tokens that lie back to back, [tokens] in and [tokens] out. A response is never
cut over micro-batches, so ratios of whole responses are the same in any packing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fourstage.objectives.objective import Trained

# Beyond e^20 a ratio says nothing, and one of a whole response would soon be infinite.
FARTHEST = 20.0


class Clip(NamedTuple):
    """Where ratios are cut: at `1 - low` and `1 + high`, and at `dual` where A is negative."""

    low: float
    high: float
    dual: float | None = None


class Surrogate(NamedTuple):
    """Each [tokens]: the loss, the ratio it is of, and whether the clip took hold there."""

    loss: Tensor
    ratio: Tensor
    cut: Tensor


def log_ratio(level: str, differences: Tensor, trained: Trained) -> Tensor:
    """[tokens] log of the ratio that each token's loss is of.

    `differences` are `logp - old_logp`; the result is held within +-20. Levels: `token`, its own
    (PPO); `sequence_mean`, the mean over its response (GSPO, Zheng et al., 2025, eq. 7);
    `sequence_sum`, the log-ratio of the whole response (RLOO, Ahmadian et al., 2024).
    """
    if level != "token":
        of_documents = trained.means if level == "sequence_mean" else trained.sums
        differences = trained.spread(of_documents(differences))
    return differences.clamp(-FARTHEST, FARTHEST)


def clipped(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, clip: Clip) -> Surrogate:
    """`max(-A rho, -A clip(rho, 1 - low, 1 + high))`.

    Schulman et al. (PPO, 2017), eq. 7; two clip ranges as in DAPO (Yu et al., 2025, eq. 10). With
    `dual` c, at most `-A c` where A is negative: a token that became c times likelier though it was
    bad pulls no harder (Ye et al., *Mastering Complex Control in MOBA Games*, 2020).
    """
    ratio = torch.exp(log_ratio)
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip.low, 1 + clip.high)
    loss, cut = torch.maximum(free, bounded), bounded > free
    if clip.dual is not None:
        most = -advantages * clip.dual
        far = (advantages < 0) & (loss > most)
        loss, cut = torch.where(far, most, loss), cut | far
    return Surrogate(loss, ratio, cut)


def cispo(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, clip: Clip) -> Surrogate:
    """`-stopgrad(clip(rho, 1 - low, 1 + high)) A logp` (MiniMax-M1, 2025, eq. 4 and 5).

    The weight is clipped and not the gradient: every token goes on learning.
    """
    ratio = torch.exp(log_ratio)
    weight = ratio.detach().clamp(1 - clip.low, 1 + clip.high)
    return Surrogate(-weight * advantages * logprobs, ratio, weight != ratio)


def plain(logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, clip: Clip) -> Surrogate:
    """`-A rho`: on-policy its gradient is that of `-A logp` (Williams, REINFORCE, 1992)."""
    ratio = torch.exp(log_ratio)
    return Surrogate(-advantages * ratio, ratio, torch.zeros_like(ratio, dtype=torch.bool))


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, Clip], Surrogate]] = {
    "clipped": clipped,
    "cispo": cispo,
    "plain": plain,
}
