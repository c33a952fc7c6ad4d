"""The best of n responses by one number: what another number of it is worth, and how far it moved.

All estimates are from N responses to each prompt, drawn once, for every n up to N.
"""

from __future__ import annotations

import math

import numpy as np


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def kl_bound(n: int) -> float:
    """`log n - (n - 1) / n`, nats: what KL(best of n || one) is at most.

    It is that where no two responses are worth the same (Stiennon et al., 2020, appendix G.3), and
    less where some are, as short answers often are (Beirami et al., *Theoretical guarantees on the
    best-of-n alignment policy*, 2024).
    """
    return math.log(n) - (n - 1) / n


def kl_of_best(shares: np.ndarray, n: int) -> float:
    """KL(best of n || one) in nats, where one response is worth the k-th lowest value with
    probability `shares[k]`; ties are broken by chance.

    `sum_k q_k log(q_k / p_k)` with `q_k = F_k^n - F_{k-1}^n`: responses of one value keep their
    proportions, so what they are does not matter.
    """
    shares = np.asarray(shares, np.float64)
    ends = np.minimum(np.cumsum(shares), 1.0)
    ends[-1] = 1.0
    best = np.diff(ends**n, prepend=0.0)
    known = best > 0
    return float(np.sum(best[known] * np.log(best[known] / shares[known])))


def estimated_kl(proxy: np.ndarray, n: int) -> np.ndarray:
    """[prompts, N] -> [prompts] `kl_of_best` of the values that were drawn.

    It takes the N drawn values for all there are: too low for n near N, and good far below it.
    """
    found = []
    for row in proxy:
        counts = np.unique(row, return_counts=True)[1]
        found.append(kl_of_best(counts / counts.sum(), n))
    return np.array(found)


def order_weights(size: int, n: int) -> np.ndarray:
    """[size] how likely the i-th lowest of `size` is the highest of n drawn without replacement:
    `C(i - 1, n - 1) / C(size, n)`.

    Raises:
        ValueError: n is not in 1 .. size.
    """
    if not 1 <= n <= size:
        raise ValueError(f"the best of {n} of {size}: n must be from 1 to {size}")
    weights = np.zeros(size)
    weights[-1] = n / size
    for place in range(size - 1, n - 1, -1):
        weights[place - 1] = weights[place] * (place + 1 - n) / place
    return weights


def mean_of_best(proxy: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """[prompts, N], [prompts, N] -> [prompts] mean of `values` at the highest `proxy` of n.

    The mean over all subsets of size n, without bias and with the least variance that N responses
    allow (Nakano et al., *WebGPT*, 2021, appendix I), as Gao et al. (2022) use it. Responses that
    the proxy cannot tell apart count by their mean, as if chance chose among them.
    """
    weights = order_weights(proxy.shape[1], n)
    found = []
    for scores, row in zip(proxy, values, strict=True):
        _, owner, counts = np.unique(scores, return_inverse=True, return_counts=True)
        means = np.bincount(owner, row) / counts
        found.append(float(weights @ means[np.sort(owner)]))
    return np.array(found)
