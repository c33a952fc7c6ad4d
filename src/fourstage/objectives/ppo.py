"""Proximal policy optimisation with a critic of its own."""

from __future__ import annotations

from fourstage.objectives.algorithms import algorithm_of
from fourstage.objectives.policy_gradient import PolicyGradient


class PPO(PolicyGradient):
    """Clipped policy and value losses, each a mean over the trained tokens of the step.

    `clipped + value_coefficient * clipped_value_loss` (Schulman et al., 2017, eq. 9, without the
    entropy bonus); the KL to the reference is in the advantages (`rewards_with_kl`).
    """

    def __init__(
        self,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_coefficient: float = 0.1,
        temperature: float = 1.0,
        pretraining_mix: float = 0.0,
    ):
        super().__init__(
            algorithm_of("ppo", clip_low=clip, clip_high=clip),
            temperature,
            value_clip=value_clip,
            value_coefficient=value_coefficient,
            pretraining_mix=pretraining_mix,
        )
