"""A plain training step for the peers, as their projects describe it, and held-out loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.precision import autocast


class PeerTraining:
    """A model with AdamW: forward, cross-entropy, backward, clip to 1, step.

    Matrices decay by 0.1, the rest does not. The optimiser is fused, the faster of torch's.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        compiled: bool = False,
        rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
    ):
        self.model, self.device = model.to(device).train(), device
        self.forward = torch.compile(self.model) if compiled else self.model
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=1e-8, fused=True)

    def loss(self, rows: Tensor) -> Tensor:
        """Mean nats a token of [rows, context + 1] ids."""
        rows = rows.to(self.device)
        with autocast(self.device):
            logits = self.forward(rows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    def step(self, rows: Tensor, rate: float) -> Tensor:
        """One update; the loss before it, still on the device."""
        loss = self.loss(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def held_out(self, batches: Iterable[Tensor]) -> float:
        """Mean nats a token over batches of rows."""
        self.model.eval()
        losses = [float(self.loss(rows)) for rows in batches]
        self.model.train()
        return sum(losses) / len(losses)
