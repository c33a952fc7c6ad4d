"""Several reward models read as one: the mean of their scores, less what they disagree by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fourstage.model.layout import Layout
from fourstage.model.transformer import Transformer


class Ensemble(nn.Module):
    """`mean_m z_m - caution std_m z_m`, z the members' normalised scores, in the first's raw unit.

    A policy that seeks out what one member overrates finds that the others do not (Coste et al.,
    *Reward Model Ensembles Help Mitigate Overoptimization*, 2024, eq. 3, takes the variance). In
    the first member's unit a critic that starts from that member starts near its rewards.

    Args:
        members: of one tokenizer and one shape, each with its `reward_mean` and `reward_std`.
        caution: standard deviations (over members, not corrected) that are taken off.

    Attributes:
        reward_mean, reward_std: what the ensemble's own raw scores are normalised with.
    """

    def __init__(self, members: Sequence[Transformer], caution: float):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.config = members[0].config
        self.caution = caution
        self.reward_mean = members[0].reward_mean
        self.reward_std = members[0].reward_std
        self._scales = [(member.reward_mean, member.reward_std) for member in members]

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        """[cells] -> the members' hidden states side by side, [cells, members x width]."""
        return torch.cat([member(tokens, layout) for member in self.members], dim=-1)

    def member_scores(self, hidden: Tensor) -> Tensor:
        """[..., members x width] -> each member's normalised score, [..., members]."""
        parts = hidden.split(self.config.width, dim=-1)
        columns = [
            (member.scores(part) - mean) / std  # ty: ignore[not-callable]
            for member, part, (mean, std) in zip(self.members, parts, self._scales, strict=True)
        ]
        return torch.stack(columns, dim=-1)

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., members x width] -> [...], the raw score."""
        each = self.member_scores(hidden)
        cautious = each.mean(dim=-1) - self.caution * each.std(dim=-1, correction=0)
        mean, std = self._scales[0]
        return cautious * std + mean
