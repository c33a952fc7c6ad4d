"""`fourstage bench`: tokens a second, share of the ceiling, and where time and memory go, by stage.

Each stage is trained for a few seconds by the very trainer, on made-up batches of the recipe's
sizes: no data are needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fourstage.model.config import ModelConfig
from fourstage.parallel.group import Group
from fourstage.planning.facts import row_tokens
from fourstage.planning.speed import cut
from fourstage.profiling.ceiling import data_sheet_flops, matmul_flops_per_second
from fourstage.profiling.measuring import Measuring, StageBench
from fourstage.recipe import Recipe

# Operations of a step that is measured: two seconds of a CPU core, a third of one of a GPU.
_MOST_FLOPS = {"cpu": 1e11, "mps": 1e12, "cuda": 1e14}


@dataclass(frozen=True)
class Bench:
    """All stages that were asked for.

    Attributes:
        ceiling: operations a second of the machine's own matrix product.
        data_sheet: peak of the accelerator by its vendor; None on a CPU.
    """

    device: str
    config: ModelConfig
    ceiling: float
    data_sheet: float | None
    stages: list[StageBench]

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "torch": torch.__version__,
            "parameters": self.config.parameters(),
            "shape": self.config.to_json(),
            "ceiling_flops_per_second": self.ceiling,
            "data_sheet_flops_per_second": self.data_sheet,
            "stages": {
                each.stage: each.to_json(self.ceiling, self.data_sheet) for each in self.stages
            },
        }


def bench(
    recipe: Recipe,
    config: ModelConfig,
    stages: Sequence[str],
    device: torch.device,
    seconds: float = 1.0,
) -> Bench:
    """Measures `stages`, each for about twice `seconds` and what a few steps take.

    A step that would take too long is cut: its batch, and where one micro-batch is still too much,
    the depth of the model; `Bench.config` and `tokens_per_step` say what was measured.

    Args:
        recipe: resolved.
        config: of the recipe's model.
    """
    shape, cells = cut(config, recipe.pretrain.batch_tokens or 4096, _MOST_FLOPS[device.type])
    smaller, group = with_batches_of(recipe, cells), Group(device=device)
    ceiling, found = matmul_flops_per_second(device), []
    for stage in stages:
        with tempfile.TemporaryDirectory(prefix="fourstage-bench-") as folder:
            measuring = Measuring(smaller, shape, stage, Path(folder), group)
            found.append(measuring.measure(seconds))
    return Bench(words_of(device), shape, ceiling, data_sheet_flops(device), found)


def with_batches_of(recipe: Recipe, cells: int) -> Recipe:
    """The recipe with no batch of more than so many cells.

    Args:
        recipe: resolved.
    """
    rows, rl = row_tokens(recipe), recipe.rl
    group, minibatches = rl.group or 1, rl.minibatches or 1
    episodes = int(cells * minibatches / (rows.prompt + rows.response)) // group * group
    batches = {
        "pretrain": ("batch_tokens", cells),
        "sft": ("batch_tokens", cells),
        "reward": ("pairs_per_step", int(cells / (2 * rows.compared))),
        "rl": ("rollout_batch", max(group * minibatches, episodes)),
    }
    changed = {}
    for stage, (field, most) in batches.items():
        section = recipe.stage(stage)
        size = min(getattr(section, field), max(1, most))
        changed[stage] = section.model_copy(update={field: size})
    return recipe.model_copy(update=changed)


def words_of(device: torch.device) -> str:
    """The device as people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
