"""Log-probabilities of whole responses, under the policy and the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.errors import InputError
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.transformer import Transformer
from fourstage.objectives.logprobs import token_logprobs
from fourstage.objectives.objective import Trained, document_sums, trained_cells


@dataclass(frozen=True)
class Weighed:
    """Trained tokens of a micro-batch, times their weights.

    Attributes:
        logprobs: [tokens]. weights: [tokens]. trained: which document each is of.
    """

    logprobs: Tensor
    weights: Tensor
    trained: Trained

    @property
    def of_documents(self) -> Tensor:
        """[documents] log-probability of each response."""
        return self.trained.sums(self.logprobs)


def response_logprobs(module: ActorCritic | Transformer, micro: Batch) -> Weighed:
    """`w_t log p(token)` of every trained token, at temperature 1."""
    policy = module.policy if isinstance(module, ActorCritic) else module
    cells = trained_cells(micro)
    weights = micro.streams["loss_weights"][cells]
    logprobs = token_logprobs(
        policy.logits,
        policy(micro.tokens, micro.layout)[cells],
        micro.targets[cells],
        policy.config.vocab_size,
        weight=policy.plain_head,
    )
    return Weighed(logprobs * weights, weights, Trained.of(micro, cells))


def reference_logprobs(micro: Batch) -> Tensor:
    """[documents] the reference's log-probability of each response.

    Read from the documents' `ref_logprobs`, or summed from the stream of that name [cells].

    Raises:
        InputError: the batch has neither.
    """
    if "ref_logprobs" in micro.documents:
        return micro.documents["ref_logprobs"]
    if "ref_logprobs" not in micro.streams:
        raise InputError(
            "the loss compares with a reference and the batch has no ref_logprobs, neither of "
            "cells nor of documents: add them, or write a loss without one (simpo, orpo)"
        )
    streams = micro.streams
    return document_sums(streams["ref_logprobs"] * streams["loss_weights"], micro)


def document_weights(micro: Batch, dtype: torch.dtype) -> Tensor:
    """[documents] `weights` of the batch, or ones."""
    ones = torch.ones(len(micro.lengths), dtype=dtype, device=micro.tokens.device)
    return micro.documents.get("weights", ones).to(dtype)
