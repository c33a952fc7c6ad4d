"""TRL's RewardTrainer on prepared comparisons, one step at a time.

The trainer is the package's own, with its collator, loss and metrics.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from peers.trl_trainers import at_the_gate, settings

# What each kind changes of TRL's defaults (random order, padding to the longest of a batch).
KINDS: dict[str, dict[str, Any]] = {
    "trl": {},
    "trl-grouped": {"train_sampling_strategy": "group_by_length"},
}
Pair = Mapping[str, list[int]]


def train(
    kind: str,
    folder: Path,
    pairs: Sequence[Pair],
    pairs_a_step: int,
    centring: float,
    rate: float,
    begun: Callable[[torch.nn.Module], bool],
    passed: Callable[..., bool],
) -> torch.nn.Module:
    """Trains the folder's reward model until `passed` says to stop; the model.

    Args:
        pairs: {"chosen_ids", "rejected_ids"} each.
        centring: coefficient of the square of a pair's sum of scores.
        begun: called with the model before the first step.
        passed: called after every step with its `cells` without padding and `all`.
    """
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    counts: dict[str, float] = {}

    class Counting(RewardTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            mask = inputs["attention_mask"]
            counts["cells"], counts["all"] = float(mask.sum()), float(mask.numel())
            return super().training_step(model, inputs, num_items_in_batch)

    with tempfile.TemporaryDirectory() as out:
        told = {
            "center_rewards_coefficient": centring or None,
            "remove_unused_columns": False,  # `length` is read before the collator is asked
        }
        config = RewardConfig(**settings(out, pairs_a_step, rate, **told, **KINDS[kind]))
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, attn_implementation="sdpa"
        )
        # The length that batches of like lengths go by is that of the longer side.
        longest = [max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) for pair in pairs]
        trainer = Counting(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(
                [{**pair, "length": length} for pair, length in zip(pairs, longest, strict=True)]
            ),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[at_the_gate(counts, passed)],
        )
        if begun(model):
            trainer.train()
    return model


@torch.no_grad()
def held_out(model: torch.nn.Module, pairs: Sequence[Pair]) -> float:
    """Mean Bradley-Terry loss, a pair at a time; nats."""
    model.eval()
    device = next(model.parameters()).device

    def score(ids: list[int]) -> torch.Tensor:
        return model(input_ids=torch.tensor([ids], device=device)).logits[0, 0].float()

    gaps = [score(pair["chosen_ids"]) - score(pair["rejected_ids"]) for pair in pairs]
    return float(-F.logsigmoid(torch.stack(gaps)).mean())
