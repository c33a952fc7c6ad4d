"""Estimators of the KL divergence from a reference, and the coefficient that steers it.

With `d = logprobs - ref_logprobs` of tokens drawn from the policy, all three estimate
KL(policy || reference) (Schulman, *Approximating KL Divergence*, 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fourstage.objectives.surrogates import FARTHEST


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`d`: unbiased, of high variance, can be negative. The one that belongs in a reward."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`d^2 / 2`: biased, but its on-policy gradient is that of the KL of the variable it is of."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`exp(-d) - 1 + d`: unbiased, never negative; as a loss it lowers KL(reference || policy).

    `d` is held above -20, as log-ratios are: one token of -90 would be infinite, and cost the step.
    """
    difference = (logprobs - ref_logprobs).clamp(min=-FARTHEST)
    return torch.expm1(-difference) + difference


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


@dataclass
class AdaptiveKL:
    """A KL coefficient that follows a target (Ziegler et al., 2019, section 2.2).

    `beta *= 1 + clip(KL / target - 1, -0.2, 0.2) * n / horizon`, KL in nats a sequence, the mean
    over the n sequences of a rollout. (The paper has a constant for n / horizon; their code has
    this.)

    Attributes:
        coefficient: beta. target: nats a sequence; None keeps beta fixed.
        horizon: sequences over which beta can change by a fifth.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10_000.0

    def update(self, kl: float, sequences: int) -> float:
        """Beta after a rollout of `sequences` whose mean KL was `kl`."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * sequences / self.horizon
        return self.coefficient

    def state(self) -> dict[str, float]:
        return {"coefficient": self.coefficient}

    def restore(self, state: dict[str, float]) -> None:
        self.coefficient = float(state["coefficient"])
