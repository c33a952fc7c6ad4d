"""Log-probabilities of the tokens that follow, a chunk of cells at a time.

Logits are the largest tensor of a step (cells x vocabulary). Here they exist for one chunk at a
time; what the backward pass keeps is their log-softmax once, or nothing when that would be large:
then each chunk is computed again. (An autograd function that fuses the head, the cross-entropy and
their backward was 3-6% faster at 2000 cells, width 128, vocabulary 900 on one CPU thread: the
matrix products are the time. Not worth a second path.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fourstage.data.batch import Batch
from fourstage.model.transformer import Transformer

Projection = Callable[[Tensor], Tensor]

# Logits a chunk. 2^19 floats (2 MB) stay in a CPU's cache; a GPU wants large products.
_CHUNK_CPU = 2**19
_CHUNK_GPU = 2**26
# Logits a batch (512 MB in fp32) beyond which the backward pass computes them again.
_KEPT = 2**27


def token_logprobs(
    project: Projection, hidden: Tensor, targets: Tensor, vocab_size: int, temperature: float = 1.0
) -> Tensor:
    """[n] `log softmax(project(hidden) / temperature)[targets]`, in fp32 or finer.

    Args:
        project: [n, width] -> [n, vocab], the language head.
        hidden: [n, width]. targets: [n] int64.
        vocab_size: the last axis of what `project` returns, from which chunks are cut.
        temperature: logits are divided by it; above 0.
    """

    def of_chunk(cells: Tensor, wanted: Tensor) -> tuple[Tensor]:
        logits = _logits(project, cells, temperature)
        return (-F.cross_entropy(logits, wanted, reduction="none"),)

    return _by_chunks(of_chunk, hidden, targets, vocab_size)[0]


def token_logprobs_and_entropies(
    project: Projection, hidden: Tensor, targets: Tensor, vocab_size: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and [n] the entropy of each distribution in nats, without gradient."""

    def of_chunk(cells: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        every = F.log_softmax(_logits(project, cells, temperature), dim=-1)
        with torch.no_grad():
            entropies = -torch.linalg.vecdot(every.exp(), every)
        return -F.nll_loss(every, wanted, reduction="none"), entropies

    logprobs, entropies = _by_chunks(of_chunk, hidden, targets, vocab_size)
    return logprobs, entropies


def token_logprobs_and_normalisers(
    project: Projection, hidden: Tensor, targets: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and [n] `log Z`: of the sum of exp(logit) over the vocabulary."""

    def of_chunk(cells: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = _logits(project, cells, 1.0)
        normalisers = logits.logsumexp(-1)
        return logits.gather(-1, wanted[:, None]).squeeze(-1) - normalisers, normalisers

    logprobs, normalisers = _by_chunks(of_chunk, hidden, targets, vocab_size)
    return logprobs, normalisers


def logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """[cells] log-probability of each cell's target; of no meaning where a cell has none."""
    hidden = model(batch.tokens, batch.layout)
    vocab_size = model.config.vocab_size
    return token_logprobs(model.logits, hidden, batch.targets, vocab_size, temperature)


def _logits(project: Projection, cells: Tensor, temperature: float) -> Tensor:
    logits = project(cells)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


def _by_chunks(
    of_chunk: Callable[..., tuple[Tensor, ...]], hidden: Tensor, targets: Tensor, vocab_size: int
) -> tuple[Tensor, ...]:
    budget = _CHUNK_CPU if hidden.device.type == "cpu" else _CHUNK_GPU
    size = max(64, budget // vocab_size)
    again = torch.is_grad_enabled() and hidden.shape[0] * vocab_size > _KEPT
    parts = []
    for cells, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        if again:
            parts.append(checkpoint(of_chunk, cells, wanted, use_reentrant=False))
        else:
            parts.append(of_chunk(cells, wanted))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
