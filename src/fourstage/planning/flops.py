"""Floating-point operations of each stage, and what share of a machine's peak they reach."""

from __future__ import annotations

from dataclasses import dataclass

from fourstage.model.config import ModelConfig


def six_nd(params: float, tokens: float) -> float:
    """Training operations without attention: 6 a parameter and token (Kaplan et al., 2020)."""
    return 6.0 * params * tokens


def mean_context(document_tokens: float) -> float:
    """Cells a token attends to on average in a document of so many tokens, itself included."""
    return (document_tokens + 1) / 2


def training_flops(config: ModelConfig, tokens: float, document_tokens: float) -> float:
    """Forward and backward operations on `tokens` in documents of `document_tokens` each."""
    return tokens * config.flops_per_token(mean_context(document_tokens))


def forward_flops(config: ModelConfig, tokens: float, document_tokens: float) -> float:
    return tokens * config.forward_flops_per_token(mean_context(document_tokens))


@dataclass(frozen=True)
class Work:
    """What a stage computes, in tokens through the model.

    Attributes:
        trained: tokens forward and backward.
        scored: tokens forward alone.
        generated: tokens drawn one at a time.
        document_tokens: mean length of a document, which attention's share follows from.
        updates: optimiser steps.
    """

    trained: float
    scored: float = 0.0
    generated: float = 0.0
    document_tokens: float = 256.0
    updates: float = 0.0

    def flops(self, config: ModelConfig) -> float:
        once = self.scored + self.generated
        return training_flops(config, self.trained, self.document_tokens) + forward_flops(
            config, once, self.document_tokens
        )


def rl_work(
    episodes: float,
    prompt_tokens: float,
    response_tokens: float,
    epochs: int,
    updates: float,
    has_critic: bool,
) -> Work:
    """Rollouts are drawn, scored by policy, reference and reward model (and valued), then trained.

    The critic is a model of the policy's size, so PPO trains two where GRPO trains one.
    """
    tokens = episodes * (prompt_tokens + response_tokens)
    scorers, trained_models = (4, 2) if has_critic else (3, 1)
    return Work(
        trained=tokens * epochs * trained_models,
        scored=tokens * scorers + episodes * prompt_tokens,
        generated=episodes * response_tokens,
        document_tokens=prompt_tokens + response_tokens,
        updates=updates,
    )


def utilisation(flops: float, seconds: float, peak_flops: float, devices: int = 1) -> float:
    """Share of the peak that `flops` in `seconds` reach (MFU; Chowdhery et al., PaLM, 2022)."""
    return flops / (seconds * peak_flops * devices)
