"""TRL's SFTTrainer on prepared rows, one step at a time.

The trainer is the package's own, with its usual collator and loss on completions alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from peers.trl_trainers import at_the_gate, settings

# What each kind changes of TRL's defaults (random order, padding to the longest of a batch).
KINDS: dict[str, dict[str, Any]] = {
    "trl": {},
    "trl-grouped": {"train_sampling_strategy": "group_by_length"},
    "trl-packed": {"packing": True},
    "trl-padding-free": {"padding_free": True, "max_length": None},
}


def train(
    kind: str,
    folder: Path,
    rows: Sequence[dict[str, list[int]]],
    rows_a_step: int,
    longest: int,
    rate: float,
    begun: Callable[[torch.nn.Module], bool],
    passed: Callable[..., bool],
) -> torch.nn.Module:
    """Trains the folder's model until `passed` says to stop; the model.

    Args:
        rows: {"input_ids", "completion_mask"} each.
        rows_a_step: rows of a batch; packed ones are as many as hold about the same tokens.
        longest: tokens of the longest row, and of a packed one.
        begun: called with the model before the first step.
        passed: called after every step with `trained` tokens, `cells` without padding and `all`.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    if kind == "trl-packed":
        mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
        rows_a_step = max(1, round(rows_a_step * mean / longest))
    counts: dict[str, float] = {}

    class Counting(SFTTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            labels, ids = inputs["labels"], inputs["input_ids"]
            mask = inputs.get("attention_mask")
            counts["trained"] = float((labels[..., 1:] != -100).sum())
            counts["cells"] = float(ids.numel() if mask is None else mask.sum())
            counts["all"] = float(ids.numel())
            return super().training_step(model, inputs, num_items_in_batch)

    with tempfile.TemporaryDirectory() as out:
        told = {"max_length": longest, "completion_only_loss": True} | KINDS[kind]
        config = SFTConfig(**settings(out, rows_a_step, rate, **told))
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
        trainer = Counting(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[at_the_gate(counts, passed)],
        )
        if begun(model):
            trainer.train()
    return model


@torch.no_grad()
def held_out(model: torch.nn.Module, rows: Sequence[dict[str, list[int]]]) -> float:
    """Mean nats a completion token, a row at a time."""
    model.eval()
    device = next(model.parameters()).device
    total = count = 0.0
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=device)
        trained = torch.tensor(row["completion_mask"][1:], device=device).bool()
        losses = F.cross_entropy(
            model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none"
        )
        total, count = total + float(losses[trained].sum()), count + float(trained.sum())
    return total / count
