"""fourstage as a contender: its model, its trainer's own update, settings by its rules."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.objectives.objective import Objective
from fourstage.parallel.group import Group
from fourstage.planning import DataFacts, resolve
from fourstage.planning.resolve import model_config
from fourstage.recipe import Recipe, load
from fourstage.stages.context import StageContext
from fourstage.training.clock import StageClock
from fourstage.training.cost import repeatable
from fourstage.training.trainer import Trainer
from peers.shapes import Shape


def recipe_of(shape: Shape, steps: int, device: torch.device, overrides: Sequence[str]) -> Recipe:
    """A recipe of this very shape and batch, every other value by the rules."""
    loaded = load(
        "own-text",
        [
            "data.pretrain=world",
            f"tokenizer.vocab_size={shape.vocab_size}",
            *(f"model.{name}={getattr(shape, name)}" for name in ("width", "layers", "heads")),
            f"model.kv_heads={shape.heads}",
            f"model.context={shape.context}",
            f"model.tie_embeddings={str(shape.tied).lower()}",
            f"pretrain.batch_tokens={shape.tokens}",
            f"pretrain.steps={steps}",
            f"pretrain.tokens={shape.tokens * steps}",
            *overrides,
        ],
    )
    return resolved(loaded, device)


def resolved(recipe: Recipe, device: torch.device, **facts: Any) -> Recipe:
    """The recipe with all its open values filled for this device."""
    memory = torch.cuda.get_device_properties(device).total_memory if _is_cuda(device) else None
    known = DataFacts(device=device.type, memory_bytes=memory, **facts)
    return resolve(recipe, known)[0]


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


class OurTraining:
    """The trainer of a stage, whose update is called from outside.

    Attributes:
        chosen: what the trainer chose by measuring (the micro-batch that fits, and others).

    Args:
        recipe: resolved.
        config: shape of the model; else the recipe's.
        model: to train; else one initialised by the recipe's seed.
        objective: to minimise; that of the next token unless said.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        *,
        stage: str = "pretrain",
        config: ModelConfig | None = None,
        model: nn.Module | None = None,
        objective: Objective | None = None,
        group: Group | None = None,
    ):
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name, stage)
        folder.mkdir()
        self.group = group or Group(device=device)
        context = StageContext(
            recipe=recipe,
            run=folder.parent,
            stage=stage,
            folder=folder,
            device=device,
            tokenizer=None,  # not asked for: nothing is decoded
            parents={},
            clock=StageClock(folder),
            group=self.group,
        )
        if model is None:
            model = Transformer(config or model_config(recipe)).initialise(recipe.seed)
        self.model = model.to(device)
        self.settings, self.chosen = context.settings(self.model), context.measured.found
        self.trainer = Trainer(
            self.model,
            objective or NextToken(),
            _Nothing(),
            self.settings,
            folder,
            device,
            say=lambda line: None,
            group=self.group,
            measured=context.measured,
        )
        self.model.train()
        # For as long as this process lives, as the trainer does it for as long as it trains.
        self._repeatable = repeatable(device)
        self._repeatable.__enter__()

    def step(self, batch: Batch, rate: float) -> float:
        """One update, on micro-batches that fit; the loss before it."""
        return self.trainer.fitting(batch, rate).loss

    @torch.no_grad()
    def held_out(self, batches: Iterable[Tensor]) -> float:
        """Mean nats a token over batches of rows, [rows, context + 1] each."""
        self.model.eval()
        total = count = 0.0
        for rows in batches:
            batch = rectangle(rows).to(self.trainer.device)
            terms, _ = self.trainer.objective.sums(self.model, batch)
            total, count = total + float(terms["tokens"]), count + batch.cells
        self.model.train()
        return total / count

    @property
    def matmul_weights(self) -> int:
        """Weights of the blocks and of the head."""
        config = self.model.config
        return config.matmul_parameters() + config.width * config.vocab_size


class _Nothing:
    """A source that is never asked."""

    def batch(self, step: int) -> Batch:
        raise RuntimeError("the benchmark gives the batches")

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing is held."""


def rectangle(rows: Tensor) -> Batch:
    """[rows, time + 1] ids -> as many documents of `time` cells, all trained."""
    count, time = rows.shape[0], rows.shape[1] - 1
    return Batch(
        tokens=rows[:, :-1].flatten(),
        lengths=(time,) * count,
        targets=rows[:, 1:].flatten(),
        streams={"loss_weights": torch.ones(count * time)},
    )
