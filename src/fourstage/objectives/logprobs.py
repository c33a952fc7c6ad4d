"""Log-probabilities of the tokens that follow, a chunk of cells at a time.

Logits are the largest tensor of a step (cells x vocabulary). Here they exist for one chunk at a
time; what the backward pass keeps is their log-softmax once, or nothing when that would be large:
then each chunk is computed again. On a CPU a kernel turns each chunk into its gradient in place,
where the head is a plain product. Where blocks are compiled, so is what follows the product: then
no logits exist in fp32, and the backward pass has one kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fourstage import kernels
from fourstage.compiled import fusible
from fourstage.data.batch import Batch
from fourstage.kernels import elements
from fourstage.model.norms import in_fp32
from fourstage.model.transformer import Transformer

Projection = Callable[[Tensor], Tensor]

# Logits a chunk. 2^19 floats (2 MB) stay in a CPU's cache; a GPU wants large products.
_CHUNK_CPU = 2**19
_CHUNK_GPU = 2**26
# Cells a chunk of the kernel, and logits that stay below: products of fewer rows run at half speed.
_KERNEL_CELLS, _KERNEL_LOGITS = 512, 2**25
# Logits a batch (512 MB in fp32) beyond which the backward pass computes them again.
_KEPT = 2**27


def token_logprobs(
    project: Projection,
    hidden: Tensor,
    targets: Tensor,
    vocab_size: int,
    temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """[n] `log softmax(project(hidden) / temperature)[targets]`, in fp32 or finer.

    Args:
        project: [n, width] -> [n, vocab], the language head.
        hidden: [n, width]. targets: [n] int64.
        vocab_size: the last axis of what `project` returns, from which chunks are cut.
        temperature: logits are divided by it; above 0.
        weight: [vocab, width], where `project` is a product with it and nothing else.
    """
    if weight is not None and kernels.usable(hidden, weight):
        return _in_one_kernel(hidden, weight, targets, temperature)[0]

    return _by_chunks(project, _picked, hidden, targets, vocab_size, temperature)[0]


def token_logprobs_and_entropies(
    project: Projection,
    hidden: Tensor,
    targets: Tensor,
    vocab_size: int,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and [n] the entropy of each distribution in nats.

    Entropies have a gradient only where `entropy_gradient` asks for it: it takes more memory, and
    no kernel has it.
    """
    if not entropy_gradient and weight is not None and kernels.usable(hidden, weight):
        logprobs, _, entropies = _in_one_kernel(hidden, weight, targets, temperature)
        return logprobs, entropies

    finish = _picked_and_live_entropies if entropy_gradient else _picked_and_entropies
    logprobs, entropies = _by_chunks(project, finish, hidden, targets, vocab_size, temperature)
    return logprobs, entropies


def token_logprobs_and_normalisers(
    project: Projection,
    hidden: Tensor,
    targets: Tensor,
    vocab_size: int,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, and [n] `log Z`: of the sum of exp(logit) over the vocabulary."""
    if weight is not None and kernels.usable(hidden, weight):
        return _in_one_kernel(hidden, weight, targets, 1.0)[:2]

    logprobs, normalisers = _by_chunks(
        project, _picked_and_normalisers, hidden, targets, vocab_size, 1.0
    )
    return logprobs, normalisers


def logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """[cells] log-probability of each cell's target; of no meaning where a cell has none."""
    hidden = model(batch.tokens, batch.layout)
    vocab_size = model.config.vocab_size
    return token_logprobs(
        model.logits, hidden, batch.targets, vocab_size, temperature, model.plain_head
    )


def _in_one_kernel(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, normalisers and entropies."""
    vocab_size = weight.shape[0]
    chunk = max(64, min(_KERNEL_CELLS, _KERNEL_LOGITS // vocab_size))
    kept = hidden.shape[0] * vocab_size <= _KEPT
    scaled = hidden if temperature == 1.0 else hidden / temperature
    return elements.logprobs(scaled, weight, targets, chunk, kept)


@fusible
def _picked(logits: Tensor, wanted: Tensor, temperature: float) -> tuple[Tensor, ...]:
    return (-F.cross_entropy(_finer(logits, temperature), wanted, reduction="none"),)


@fusible
def _picked_and_entropies(logits: Tensor, wanted: Tensor, temperature: float) -> tuple[Tensor, ...]:
    every = F.log_softmax(_finer(logits, temperature), dim=-1)
    with torch.no_grad():
        entropies = -torch.linalg.vecdot(every.exp(), every)
    return -F.nll_loss(every, wanted, reduction="none"), entropies


@fusible
def _picked_and_live_entropies(
    logits: Tensor, wanted: Tensor, temperature: float
) -> tuple[Tensor, ...]:
    every = F.log_softmax(_finer(logits, temperature), dim=-1)
    return -F.nll_loss(every, wanted, reduction="none"), -torch.linalg.vecdot(every.exp(), every)


@fusible
def _picked_and_normalisers(
    logits: Tensor, wanted: Tensor, temperature: float
) -> tuple[Tensor, ...]:
    logits = _finer(logits, temperature)
    normalisers = logits.logsumexp(-1)
    return logits.gather(-1, wanted[:, None]).squeeze(-1) - normalisers, normalisers


def _finer(logits: Tensor, temperature: float) -> Tensor:
    logits = in_fp32(logits)
    return logits if temperature == 1.0 else logits / temperature


def _by_chunks(
    project: Projection,
    finish: Callable[[Tensor, Tensor, float], tuple[Tensor, ...]],
    hidden: Tensor,
    targets: Tensor,
    vocab_size: int,
    temperature: float,
) -> tuple[Tensor, ...]:
    """What `finish` makes of logits and targets, chunks joined."""

    def of_chunk(cells: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        return finish(project(cells), wanted, temperature)

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
