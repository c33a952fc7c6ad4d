"""A policy and its critic as one module, so that one trainer and one checkpoint hold both."""

from __future__ import annotations

from torch import nn

from fourstage.model.transformer import Transformer


class ActorCritic(nn.Module):
    """`policy` has a language head; `critic` is a model of its own with a scalar head, or None."""

    def __init__(self, policy: Transformer, critic: Transformer | None = None):
        super().__init__()
        self.policy = policy
        self.critic = critic
