"""TRL's SFTTrainer on prepared rows, one step at a time.

The trainer is the package's own, with its usual collator and loss on completions alone. What it
would switch on by default and a CPU does worse with is off: bf16, and gradient checkpointing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

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
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
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

    class AtTheGate(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = not passed(**counts)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as out:
        told = {"max_length": longest} | KINDS[kind]
        config = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=rows_a_step,
            max_steps=1_000_000,
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10,
            seed=0,
            **told,
        )
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
        trainer = Counting(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[AtTheGate()],
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
