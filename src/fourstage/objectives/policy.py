"""The numbers to watch in policy optimisation."""

from __future__ import annotations

from torch import Tensor

from fourstage.data.batch import Batch
from fourstage.objectives.kl import k1, k3
from fourstage.objectives.objective import Metrics, metric_sums


def policy_metrics(
    micro: Batch,
    cells: Tensor,
    logprobs: Tensor,
    old: Tensor,
    ratio: Tensor,
    cut: Tensor,
    entropies: Tensor,
) -> Metrics:
    """Means over trained tokens, as (sum, count).

    `ratio`; `ratio_deviation` |rho - 1|, which is 0 within rounding on a rollout's first minibatch;
    `approx_kl_k1` and `approx_kl_k3` from the old policy to this one; `clip_fraction`; `entropy`;
    `kl_k1`, `kl_k3` to the reference and `rollout_gap` |old - rollout log-probability| where the
    batch has those streams. All in nats a token.

    Args:
        logprobs, old: [tokens] of the policy now, and of the one that is learned from.
    """
    streams = micro.streams
    now = logprobs.detach()
    values = {
        "ratio": ratio,
        "ratio_deviation": (ratio - 1).abs(),
        # Tokens were drawn from the old policy, so its log-probability comes first.
        "approx_kl_k1": k1(old, now),
        "approx_kl_k3": k3(old, now),
        "clip_fraction": cut.to(now.dtype),
        "entropy": entropies,
    }
    if "ref_logprobs" in streams:
        values["kl_k1"] = k1(now, streams["ref_logprobs"][cells])
        values["kl_k3"] = k3(now, streams["ref_logprobs"][cells])
    if "rollout_logprobs" in streams:
        values["rollout_gap"] = (old - streams["rollout_logprobs"][cells]).abs()
    return metric_sums(streams["loss_weights"][cells], **values)
