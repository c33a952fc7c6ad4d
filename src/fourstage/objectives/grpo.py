"""Group relative policy optimisation: no critic, the group's mean is the baseline."""

from __future__ import annotations

from fourstage.objectives.algorithms import algorithm_of
from fourstage.objectives.policy_gradient import PolicyGradient


class GRPO(PolicyGradient):
    """`mean over sequences of (1 / |o|) sum_t [clipped_t + beta k3_t]`.

    DeepSeekMath (Shao et al., 2024), eq. 3 and 4: the KL to the reference is in the loss, a token
    at a time, and the gradient of k3 is that of KL(reference || policy). Advantages come from
    `group_advantages`, one number on all tokens of a response.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coefficient: float = 0.0,
        temperature: float = 1.0,
    ):
        changed = {"clip_low": clip_low, "clip_high": clip_high, "kl_coefficient": kl_coefficient}
        super().__init__(algorithm_of("grpo", **changed), temperature)
