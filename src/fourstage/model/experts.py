"""A mixture of experts: each token is sent to a few of many MLPs (Shazeer et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.model.config import Activation, ModelConfig
from fourstage.model.mlp import activate
from fourstage.model.norms import in_fp32


@dataclass
class Routing:
    """How one layer's router dealt with some cells.

    Attributes:
        logits: [cells, experts] of the router, fp32 or finer, with gradient.
        load: [experts] share of tokens sent to each in the step before; sums to experts_per_token.
    """

    logits: Tensor
    load: Tensor


class Experts(nn.Module):
    """The MLPs of a mixture, stacked: `gate_proj`, `up_proj` and `down_proj` [experts, out, in]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation: Activation = config.activation
        self.gated = config.gated
        inwards = (config.experts, config.mlp_width, config.width)
        if config.gated:
            self.gate_proj = nn.Parameter(torch.empty(inwards))
        self.up_proj = nn.Parameter(torch.empty(inwards))
        self.down_proj = nn.Parameter(torch.empty(config.experts, config.width, config.mlp_width))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """[n, width], sorted by expert, of which expert e has `counts[e]` -> [n, width]."""
        if _has_grouped_product(x):
            ends = counts.cumsum(0).to(torch.int32)
            inner = self._inner(x, lambda x, weight: _grouped(x, weight, ends))
            return _grouped(inner, self.down_proj, ends)
        stacks = [self.up_proj.unbind(), self.down_proj.unbind()]
        gates = self.gate_proj.unbind() if self.gated else [None] * len(counts)
        done = []
        for rows, gate, up, down in zip(x.split(counts.tolist()), gates, *stacks, strict=True):
            inner = F.linear(rows, up)
            if gate is None:
                inner = activate(self.activation, inner)
            else:
                inner = activate(self.activation, F.linear(rows, gate)) * inner
            done.append(F.linear(inner, down))
        return torch.cat(done)

    def _inner(self, x: Tensor, product: Any) -> Tensor:
        if not self.gated:
            return activate(self.activation, product(x, self.up_proj))
        gate = activate(self.activation, product(x, self.gate_proj))
        return gate * product(x, self.up_proj)


class Mixture(nn.Module):
    """`sum_e w_e MLP_e(x)` over the `experts_per_token` likeliest experts of a softmax router.

    Every token meets its experts, however many choose the same one: there is no capacity, so what
    a token becomes does not depend on its batch.

    Attributes:
        load: [experts] share of tokens sent to each in the step before; sums to experts_per_token.
            Part of a checkpoint, not of the model.
        sent: [experts] tokens sent to each by the last pass that was given `routing`.
    """

    load: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.chosen = config.experts_per_token
        self.normalised = config.normalise_experts
        self.gate = nn.Linear(config.width, config.experts, bias=False)
        self.experts = Experts(config)
        share = config.experts_per_token / config.experts
        # On the CPU even where weights are made on no device and loaded later.
        even = torch.full((config.experts,), share, device="cpu")
        self.register_buffer("load", even)
        self.sent: Tensor | None = None

    def forward(self, x: Tensor, routing: list[Routing] | None = None) -> Tensor:
        """[cells, width] -> [cells, width]; a list given is added this layer's `Routing`."""
        logits = in_fp32(self.gate(x))
        weights, chosen = logits.softmax(dim=-1).topk(self.chosen, dim=-1)
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        chosen = chosen.flatten()
        counts = torch.bincount(chosen, minlength=logits.shape[-1])
        if routing is not None:
            # Set and not added to: recomputation in the backward pass counts nothing twice.
            self.sent = counts
            routing.append(Routing(logits, self.load))
        order = chosen.argsort(stable=True)
        back = order.argsort()
        mixed = self.experts(_Dispatch.apply(x, order, back, self.chosen), counts)
        mixed = _Permute.apply(mixed, back, order).unflatten(0, weights.shape)
        return (mixed * weights[..., None].to(mixed.dtype)).sum(dim=1)


class Loads:
    """What the mixtures of a module send where, over a whole step.

    The balance of a step is weighed by the shares of the *step before*, over all its micro-batches
    and processes. Shares of a micro-batch would make the update depend on how a step is cut, and
    force each few documents to use all experts alike, which keeps experts from specialising (Qiu
    et al., *Demons in the Detail*, 2025). Balancing by a bias on the choice (Wang et al., 2024)
    is as invariant, but the bias stays part of the model, and no Mixtral or Qwen3-MoE holds one.

    Args:
        modules: copies of one module, the first of them the module itself.
    """

    def __init__(self, *modules: nn.Module):
        self._mixtures = [
            [part for part in module.modules() if isinstance(part, Mixture)] for module in modules
        ]
        self._sums: list[list[Tensor | float]] = [[0.0] * len(own) for own in self._mixtures]

    def add(self, weight: float, copy: int = 0) -> None:
        """Counts the micro-batch that a copy has read last, `weight` times."""
        for index, mixture in enumerate(self._mixtures[copy]):
            if mixture.sent is not None:
                self._sums[copy][index] += weight * mixture.sent
                mixture.sent = None

    def take(self) -> list[Tensor]:
        """Ends a step: for each mixture the tokens sent to each expert, [experts] fp32.

        They are to be summed over the processes, and then given to `settle`.
        """
        taken = []
        for index, mixture in enumerate(self._mixtures[0]):
            taken.append(torch.zeros_like(mixture.load))
            for own in self._sums:
                taken[-1] += own[index]
                own[index] = 0.0
        return taken

    @torch.no_grad()
    def settle(self, sent: list[Tensor]) -> None:
        """Makes the shares of an applied step those that the next one is weighed by."""
        for mixture, counts in zip(self._mixtures[0], sent, strict=True):
            total = counts.sum()
            shares = counts * (mixture.chosen / total.clamp_min(1.0))
            mixture.load.copy_(torch.where(total > 0, shares, mixture.load))


class _Dispatch(torch.autograd.Function):
    """Cells in the order of their experts, each as often as it has experts.

    Both directions gather: sums of a scatter have no fixed order on CUDA.
    """

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return x.index_select(0, order // copies)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        (back,) = ctx.saved_tensors
        gathered = gradient.index_select(0, back).unflatten(0, (-1, ctx.copies))
        return gathered.sum(dim=1), None, None, None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # ty: ignore[incompatible-method-override]
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


def _has_grouped_product(x: Tensor) -> bool:
    """Whether one kernel takes all experts: bf16 on CUDA; elsewhere it is a loop as well."""
    if x.device.type != "cuda" or not hasattr(F, "grouped_mm"):
        return False
    return _dtype_of_products(x) == torch.bfloat16


def _dtype_of_products(x: Tensor) -> torch.dtype:
    cast = torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if cast else x.dtype


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """[n, in] x [experts, out, in] -> [n, out], expert e on the rows up to `ends[e]`."""
    dtype = _dtype_of_products(x)
    return F.grouped_mm(x.to(dtype), weight.to(dtype).transpose(-1, -2), offs=ends)
