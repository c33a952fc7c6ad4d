"""TRL's RewardTrainer on prepared comparisons, one step at a time.

The trainer is the package's own, with its collator, loss and metrics. What it would switch on by
default and a CPU does worse with is off: bf16, and gradient checkpointing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

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
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    counts: dict[str, float] = {}

    class Counting(RewardTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            mask = inputs["attention_mask"]
            counts["cells"], counts["all"] = float(mask.sum()), float(mask.numel())
            return super().training_step(model, inputs, num_items_in_batch)

    class AtTheGate(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = not passed(**counts)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as out:
        config = RewardConfig(
            output_dir=out,
            per_device_train_batch_size=pairs_a_step,
            max_steps=1_000_000,
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            center_rewards_coefficient=centring or None,
            gradient_checkpointing=False,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10,
            remove_unused_columns=False,  # `length` is read before the collator is asked
            seed=0,
            **KINDS[kind],
        )
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
            callbacks=[AtTheGate()],
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
