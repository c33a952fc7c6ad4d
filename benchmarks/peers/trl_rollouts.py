"""TRL's GRPOTrainer and RLOOTrainer with transformers' generation, one step at a time.

The trainers are the package's own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peers.trl_trainers import at_the_gate, settings


@dataclass(frozen=True)
class Asked:
    """What both sides are asked for.

    Attributes:
        algorithm: `grpo` or `rloo`.
        prompts: of a step, each answered `group` times with `new` tokens.
        beta: of the KL with the reference.
    """

    algorithm: str
    prompts: int
    group: int
    new: int
    beta: float
    rate: float


def train(
    asked: Asked,
    folder: Path,
    prompts: Sequence[str],
    reward: Callable[[Sequence[int]], float],
    begun: Callable[[torch.nn.Module], bool],
    passed: Callable[..., bool],
    device: str = "cpu",
) -> None:
    """Trains the folder's model until `passed` says to stop.

    Args:
        reward: of the tokens of a completion.
        begun: called with the model before the first step.
        passed: called after every step with `drawn` and `read`, tokens of completions and of
            prompts without padding.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    logging.set_verbosity_error()
    kinds: dict[str, Any] = {
        "grpo": (GRPOTrainer, GRPOConfig),
        "rloo": (RLOOTrainer, RLOOConfig),
    }
    base, config_of = kinds[asked.algorithm]
    counts: dict[str, float] = {}

    class Counting(base):
        def _generate_and_score_completions(self, inputs):
            made = super()._generate_and_score_completions(inputs)
            counts["drawn"] = float(made["completion_mask"].sum())
            counts["read"] = float(made["prompt_mask"].sum())
            return made

    def rewards(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [reward(ids) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as out:
        told = {
            "num_generations": asked.group,
            "max_completion_length": asked.new,
            "temperature": 1.0,
            "beta": asked.beta,
            "weight_decay": 0.0,
            "adam_beta2": 0.999,
            "bf16": device != "cpu",
            "use_cpu": device == "cpu",
            "logging_steps": 1_000_000,
        }
        config = config_of(**settings(out, asked.prompts * asked.group, asked.rate, **told))
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
        trainer = Counting(
            model=model,
            args=config,
            reward_funcs=rewards,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[at_the_gate(counts, passed)],
        )
        trainer.remove_callback(PrinterCallback)
        never_end(trainer)
        if begun(model):
            trainer.train()


def never_end(trainer: Any) -> None:
    """No token ends a completion, neither as it is drawn nor as it is counted."""
    trainer.eos_token_ids = [-1]
    trainer.generation_kwargs["eos_token_id"] = -1
    trainer.generation_config.eos_token_id = -1
