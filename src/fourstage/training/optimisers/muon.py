"""Muon: momentum whose every direction is given the same size, for the matrices inside a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fourstage.parallel.group import Group
from fourstage.training.optimisers.sharding import local, local_gradient, own_part, whole

# Of the quintic a x + b x^3 + c x^5, chosen for its slope at 0 (Jordan et al., 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
# Numbers that are made orthogonal at a time: small matrices together, a large one by itself.
_STACKED = 2**24


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[n, rows, cols] -> nearly U V^T of each U S V^T: singular values between 0.7 and 1.2.

    Newton-Schulz: each iteration applies the quintic to the singular values by matrix products
    alone (Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)
    # The Frobenius norm bounds the largest singular value: all of them start at 1 or below.
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with decoupled weight decay.

    `w <- (1 - rate decay) w - 0.2 sqrt(max(rows, cols)) rate NS(g + momentum (m - g))`, where `m`
    averages the gradients. The factor gives an update's entries a mean square of 0.2, which is
    about AdamW's: its learning rate and decay serve here (Liu et al., *Muon is Scalable for LLM
    Training*, 2025, eq. 4). bf16 on CUDA; on a CPU, whose bf16 is slow, fp32.

    An orthogonal factor is one of a whole matrix. Where parameters are cut or sharded, momentum
    stays so and each update is gathered, made orthogonal on every process alike, and cut again.

    Args:
        groups: of matrices [rows, cols], or stacked ones [..., rows, cols] (experts); "axis" is
            that along which the slices of `sliced` lie, None where each process holds all.
        sliced: processes that hold a slice each.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        sliced: Group | None = None,
    ):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "axis": None})
        self._sliced = sliced or Group()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # ty: ignore[incompatible-method-override]
        for group in self.param_groups:
            for members in _alike(group["params"]):
                self._update(members, group["axis"], group["lr"], group["weight_decay"])

    def _update(self, members: list[Tensor], axis: int | None, rate: float, decay: float) -> None:
        """One step of some parameters of one shape."""
        for parameter in members:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        weights = [local(parameter) for parameter in members]
        gradients = [local_gradient(parameter) for parameter in members]
        momenta = [local(self.state[parameter]["momentum_buffer"]) for parameter in members]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        cut = (members[0], axis, self._sliced)
        full = torch.stack([whole(part, *cut) for part in ahead])
        rows, cols = full.shape[-2:]
        dtype = torch.bfloat16 if full.device.type == "cuda" else torch.float32
        updates = orthogonalise(full.view(-1, rows, cols), dtype).to(full.dtype).view_as(full)
        torch._foreach_mul_(weights, 1 - rate * decay)
        scale = 0.2 * max(rows, cols) ** 0.5
        own = [own_part(update, *cut) for update in updates]
        torch._foreach_add_(weights, own, alpha=-rate * scale)


def _alike(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one shape, cut alike, as many as may be stacked; in order."""
    waiting: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        cut = tuple(
            getattr(parameter, name, None) for name in ("shape", "device_mesh", "placements")
        )
        members = waiting.setdefault(cut, [])
        members.append(parameter)
        if (len(members) + 1) * parameter.numel() > _STACKED:
            yield waiting.pop(cut)
    yield from waiting.values()
