"""What TRL's trainers are told alike, and how one of them waits for its turn after each step.

What they would switch on by default and a CPU does worse with is off: bf16, and gradient
checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def settings(out: str, rows: int, rate: float, **changes: Any) -> dict[str, Any]:
    """Arguments of a configuration: a constant rate, AdamW, and nothing written or printed.

    Args:
        out: an empty folder. rows: of a batch, which is a step.
    """
    has_gpu = torch.cuda.is_available()
    told = {
        "output_dir": out,
        "per_device_train_batch_size": rows,
        "max_steps": 1_000_000,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "bf16": has_gpu,
        "use_cpu": not has_gpu,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 10,
        "seed": 0,
    }
    return told | changes


def at_the_gate(counts: Mapping[str, float], passed: Callable[..., bool]) -> Any:
    """A callback that calls `passed` with the counts of each step, and stops when it says so."""
    from transformers import TrainerCallback

    class AtTheGate(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = not passed(**counts)

    return AtTheGate()
