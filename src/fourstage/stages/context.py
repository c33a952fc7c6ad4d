"""What a stage is given: its part of the recipe, its parents, its data, and where to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fourstage.evaluation.estimates import Numbers
from fourstage.evaluation.responses import Chat
from fourstage.files import read_json, write_json
from fourstage.memory import PeakMemory
from fourstage.model.transformer import Transformer
from fourstage.parallel.group import Group
from fourstage.parallel.mesh import Mesh
from fourstage.recipe import Recipe
from fourstage.stages.computing import settle_kernels, settle_precision, settle_workers
from fourstage.training.clock import StageClock
from fourstage.training.contracts import Guard, Source
from fourstage.training.fitting import Measured
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer, TrainResult

if TYPE_CHECKING:
    from fourstage.objectives.objective import Objective
    from fourstage.tokenizer import Tokenizer


@dataclass
class StageContext:
    """One stage of one run.

    Attributes:
        recipe: resolved. run: the run's folder. folder: the stage's, `run / stage`.
        parents: role ("from", "reward_model", ...) -> model folder the stage reads.
        clock: counts the stage's seconds over all processes that worked on it.
        group: the processes that train together; only one of them measures and writes.
        mesh: how models lie on them; unless said, each holds all of a model.
        measured: what was chosen by measuring, kept in run.json.
        memory: the most that the stage holds, and what was held before it.
        reader: is given each row of numbers as soon as training has written it.
    """

    recipe: Recipe
    run: Path
    stage: str
    folder: Path
    device: torch.device
    tokenizer: Tokenizer
    parents: Mapping[str, Path]
    clock: StageClock
    say: Callable[[str], None] = print
    group: Group = field(default_factory=Group)
    mesh: Mesh | None = None
    measured: Measured = field(default_factory=Measured)
    reader: Callable[[Mapping[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        self.memory = PeakMemory(self.device)
        settle_precision(self.recipe.compute, self.device, self.measured, self.say)
        settle_kernels(self.recipe.compute, self.device, self.measured, self.say)

    @property
    def section(self) -> Any:
        return self.recipe.stage(self.stage)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def data(self) -> Path:
        return self.run / "data"

    def settings(self, module: nn.Module, **others: Any) -> TrainSettings:
        """What the stage's section, and the machine, tell the trainer of `module`."""
        names = TrainSettings.__dataclass_fields__.keys() & type(self.section).model_fields.keys()
        told = {name: getattr(self.section, name) for name in names}
        given: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        compute = self.recipe.compute
        given["prefetch"] = {"on": True, "off": False}.get(compute.prefetch)
        given |= {
            name: getattr(compute, name) for name in ("compile", "recompute", "memory", "tune")
        }
        if "workers" not in others:
            trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
            given["workers"] = settle_workers(
                compute, self.device, self.measured, trained, self.group
            )
        given["width_ratio"] = self.recipe.model.width_ratio
        together: dict[str, Any] = {**given, "seed": self.seed, **others}
        return TrainSettings(**together)

    def train(
        self,
        module: nn.Module,
        objective: Objective,
        source: Source,
        *,
        guards: Sequence[Guard] = (),
        validate: Callable[[], Mapping[str, float]] | None = None,
        sample: Callable[[int], list[dict[str, Any]]] | None = None,
        floor: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> TrainResult:
        """Trains `module` to the section's last step, going on from a checkpoint."""
        trainer = Trainer(
            module,
            objective,
            source,
            self.settings(module, **settings),
            self.folder,
            self.device,
            guards=guards,
            validate=validate,
            sample=sample,
            say=self.say,
            floor=floor,
            clock=self.clock,
            group=self.group,
            mesh=self.mesh,
            measured=self.measured,
        )
        trainer.journal.reader = self.reader
        return trainer.train()

    def measure(self, name: str, compute: Callable[[], Numbers]) -> Numbers:
        """The numbers of one measurement, taken once: a resumed run reads them back.

        Processes that do not write get nothing, and do not wait.
        """
        if not self.group.writes:
            return Numbers()
        path = self.folder / "evaluation" / f"{name}.json"
        if path.exists():
            return Numbers.from_json(read_json(path))
        numbers = compute()
        write_json(path, numbers.to_json())
        self.clock.write()
        return numbers

    def decided(self, name: str, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A JSON value that training goes by, the same on all processes.

        The one that writes decides it, once: a resumed run reads it back.
        """
        path, told = self.folder / f"{name}.json", None
        if self.group.writes:
            if not path.exists():
                write_json(path, decide())
                self.clock.write()
            told = read_json(path)
        return self.group.tell(told)

    def chat(self, model: Transformer) -> Chat:
        """The model ready to respond, with the longest response the run allows."""
        longest = self.recipe.rl.max_new_tokens or model.config.context // 4
        return Chat(model, self.tokenizer, longest, self.seed)
