"""From scores to advantages, on flat documents: pure functions, before any update.

A cell is *trained* where `loss_weights` is not zero; it predicts one response token, and carries
that token's log-probability, reward, value and advantage. Everything is zero on the other cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fourstage.objectives.kl import k1

Estimator = Callable[[Tensor, Tensor], Tensor]


def _owners(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[cells] index of the document of each cell."""
    sizes = torch.tensor(tuple(lengths), device=device)
    return torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)


def spread(values: Tensor, lengths: Sequence[int], loss_weights: Tensor) -> Tensor:
    """[documents] -> [cells]: each document's number on each of its trained cells."""
    return values[_owners(lengths, values.device)] * (loss_weights != 0)


def rewards_with_kl(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    loss_weights: Tensor,
    lengths: Sequence[int],
    kl_coefficient: float,
    estimator: Estimator = k1,
) -> Tensor:
    """`r_t = -beta (logp_t - ref_t)`, plus the document's score at its last trained cell.

    Ouyang et al. (InstructGPT, 2022), eq. 2, per token as in Ziegler et al. (2019), where the
    estimator of the KL is k1.

    Args:
        scores: [documents]. logprobs, ref_logprobs, loss_weights: [cells].
        lengths: cells of each document. kl_coefficient: beta, reward a nat.
        estimator: of the KL at a token, of its two log-probabilities.

    Returns:
        [cells], zero on cells that are not trained.

    Raises:
        ValueError: a document without a trained cell has nowhere to put its score.
    """
    owners = _owners(lengths, logprobs.device)
    trained = loss_weights != 0
    places = torch.where(trained, torch.arange(len(owners), device=owners.device), -1)
    last = places.new_full((len(lengths),), -1).scatter_reduce(0, owners, places, "amax")
    if (last < 0).any():
        raise ValueError(f"document {int((last < 0).nonzero()[0])} has no trained cell")
    rewards = -kl_coefficient * estimator(logprobs, ref_logprobs) * trained
    return rewards.index_add(0, last, scores.to(rewards.dtype))


def gae(
    rewards: Tensor,
    values: Tensor,
    loss_weights: Tensor,
    lengths: Sequence[int],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, eq. 16), over trained cells.

    `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, V after the last
    trained cell being 0. `values` at a cell is that of the state before the token it predicts.

    Args:
        rewards, values, loss_weights: [cells]. lengths: cells of each document.

    Returns:
        Advantages [cells], not whitened, and returns `A + V` [cells]; zero on untrained cells.
    """
    trained = loss_weights != 0
    owners = _owners(lengths, rewards.device)[trained]
    sizes = torch.bincount(owners, minlength=len(lengths))
    steps = torch.arange(len(owners), device=owners.device) - (sizes.cumsum(0) - sizes)[owners]
    time = int(sizes.max())

    def padded(stream: Tensor) -> Tensor:
        # Zeros behind a document's end: there V is 0, and so is every delta.
        return stream.new_zeros(len(sizes), time + 1).index_put((owners, steps), stream[trained])

    r, v = padded(rewards), padded(values)
    deltas = r[:, :-1] + gamma * v[:, 1:] - v[:, :-1]
    running = deltas.new_zeros(len(sizes))
    columns = []
    for t in range(time - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        columns.append(running)
    found = torch.stack(columns[::-1], dim=1)[owners, steps]
    advantages = torch.zeros_like(rewards).masked_scatter(trained, found)
    returns = torch.zeros_like(rewards).masked_scatter(trained, found + values[trained])
    return advantages, returns


def whiten(
    values: Tensor,
    loss_weights: Tensor,
    shift_mean: bool = True,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`(x - mean) / sqrt(variance + 1e-8)` over the trained cells of all micro-batches and ranks.

    As in lm-human-preferences (Ziegler et al., 2019): the variance divides by n (no Bessel
    correction), and cells count with their weights.

    Args:
        values, loss_weights: [cells].
        shift_mean: False keeps the mean, as for rewards.
        reduce: sums a small tensor over ranks, where each rank holds a part; None: it holds all.

    Returns:
        [cells], zero on untrained cells.
    """
    reduce = reduce or (lambda sums: sums)
    count, total = reduce(torch.stack([loss_weights.sum(), (values * loss_weights).sum()]))
    mean = total / count
    centred = values - mean
    variance = reduce((centred.square() * loss_weights).sum()[None])[0] / count
    scaled = centred * torch.rsqrt(variance + 1e-8)
    return (scaled if shift_mean else scaled + mean) * (loss_weights != 0)


def group_advantages(
    rewards: Tensor, group: Tensor, scale_by_std: bool = True, eps: float = 1e-4
) -> Tensor:
    """`(r - mean) / (std + eps)` within each group of responses to one prompt.

    DeepSeekMath (Shao et al., 2024), section 4.1.2. The std is Bessel-corrected (divides by G - 1),
    with the eps of TRL. Without `scale_by_std`: `r - mean`, Dr. GRPO (Liu et al., 2025).

    Args:
        rewards: [documents]. group: [documents] ids, any integers, in any order.

    Returns:
        [documents]; 0 in a group of one or of equal rewards.
    """
    rows, sizes = _groups(group, rewards)
    centred = rewards - (_group_sums(rewards, rows, sizes) / sizes)[rows]
    if not scale_by_std:
        return centred
    std = (_group_sums(centred.square(), rows, sizes) / (sizes - 1).clamp(min=1)).sqrt()
    return centred / (std[rows] + eps)


def leave_one_out_advantages(rewards: Tensor, group: Tensor) -> Tensor:
    """`r_i` less the mean of the other rewards of its group (Kool et al., 2019; RLOO).

    Equals `G / (G - 1)` times the reward less the mean of all: that much larger than a group's
    advantage, and unbiased, since the baseline does not know its own response.

    Args:
        rewards: [documents]. group: [documents] ids, any integers, in any order.

    Returns:
        [documents]; 0 in a group of one, which has nothing to compare with.
    """
    rows, sizes = _groups(group, rewards)
    others = _group_sums(rewards, rows, sizes)[rows] - rewards
    return torch.where(sizes[rows] > 1, rewards - others / (sizes[rows] - 1).clamp(min=1), 0)


def dead_groups(rewards: Tensor, group: Tensor, tolerance: float = 1e-6) -> Tensor:
    """[documents] whether all responses to its prompt have the same reward, within `tolerance`.

    Such a group has no advantage and teaches nothing; dynamic sampling (DAPO, Yu et al., 2025,
    section 3.2) draws another prompt in its place.
    """
    rows, sizes = _groups(group, rewards)
    empty = rewards.new_zeros(len(sizes))
    highest = empty.scatter_reduce(0, rows, rewards, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, rows, rewards, "amin", include_self=False)
    return (highest - lowest <= tolerance)[rows]


def overlong_penalties(tokens: Tensor, longest: int, buffer: int) -> Tensor:
    """What is added to the reward of a long response: 0, then a line down to -1 at `longest`.

    `(longest - buffer - tokens) / buffer` within the last `buffer` tokens (soft overlong
    punishment, Yu et al., DAPO, 2025, eq. 13).

    Args:
        tokens: [documents] length of each response. longest: tokens, where the penalty is -1.
        buffer: tokens over which it grows, above 0.

    Raises:
        ValueError: a buffer that is empty or longer than the longest response.
    """
    if not 0 < buffer <= longest:
        raise ValueError(f"a buffer of {buffer} tokens does not lie within {longest}")
    return ((longest - buffer - tokens) / buffer).clamp(-1, 0)


def _groups(group: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """[documents] number of each one's group, and [groups] how many each has."""
    _, rows, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    return rows, sizes.to(rewards.dtype)


def _group_sums(values: Tensor, rows: Tensor, sizes: Tensor) -> Tensor:
    return values.new_zeros(len(sizes)).index_add(0, rows, values)


def explained_variance(values: Tensor, returns: Tensor, loss_weights: Tensor) -> float:
    """`1 - Var(returns - values) / Var(returns)` over trained cells; 1 is a perfect critic.

    0 is no better than a constant; 0 too when the returns do not vary at all.
    """

    def variance(x: Tensor) -> Tensor:
        mean = (x * loss_weights).sum() / loss_weights.sum()
        return ((x - mean).square() * loss_weights).sum()

    total = variance(returns)
    return float(1 - variance(returns - values) / total) if total > 0 else 0.0
