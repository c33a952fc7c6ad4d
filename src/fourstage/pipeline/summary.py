"""What a run came to: each stage's numbers against their ceilings, and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from fourstage.reporting.numbers import figures
from fourstage.reporting.runfiles import STAGES, RunFiles, StageFiles, read_run
from fourstage.training.progress import clock_time

# stage -> (what is shown, its metric, what it is held against, the metric of that)
_LINES = {
    "pretrain": (
        ("bits per byte", "validation_bits_per_byte", "entropy", "entropy_bits_per_byte"),
    ),
    "sft": (("tasks done", "task_success", "base model", "base_task_success"),),
    "reward": (("pair accuracy", "pair_accuracy", "ceiling", "pair_accuracy_ceiling"),),
    "rl": (
        ("gold reward", "gold_reward", "ceiling", "gold_reward_ceiling"),
        ("before", "gold_reward_sft", "", ""),
        ("right answers", "accuracy", "before", "accuracy_sft"),
        ("KL", "kl", "", ""),
    ),
}


def summarise(
    folder: Path, page: Path, stages: Collection[str], say: Callable[[str], None]
) -> None:
    """Says how each finished stage ended, where the report is, and how to talk to the model.

    Args:
        stages: those that were asked for and those they are made from; what else lies in the folder
            is of an earlier recipe.
    """
    run = read_run(folder)
    finished = [run[stage] for stage in STAGES if stage in stages and run[stage].finished]
    for stage in finished:
        say(f"{stage.title:<24}{clock_time(stage.total('seconds') or 0):>8}   {_numbers(stage)}")
    if len(finished) > 1:
        say(f"{'together':<24}{clock_time(sum(s.total('seconds') or 0 for s in finished)):>8}")
    say(f"report: {page}")
    if _can_chat(run):
        say(f"talk to it: fourstage chat {folder}")


def _numbers(stage: StageFiles) -> str:
    parts = []
    for label, metric, against, other in _LINES[stage.name]:
        if metric not in stage.metrics:
            continue
        beside = f" ({against} {figures(stage.metrics[other])})" if other in stage.metrics else ""
        parts.append(f"{label} {figures(stage.metrics[metric])}{beside}")
    return ", ".join(parts)


def _can_chat(run: RunFiles) -> bool:
    return any((run.folder / stage / "model" / "config.json").is_file() for stage in ("sft", "rl"))
