"""The training loop of every stage.

    batch -> micro-batches -> sums over global counts -> gradients -> clip -> AdamW

What a step computes is a function of the recipe and the step; how it is cut into micro-batches,
dealt out to processes, interrupted or resumed changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.errors import InputError, Interrupted, MachineError
from fourstage.objectives.objective import Objective
from fourstage.parallel.group import Group
from fourstage.randomness import seed_for
from fourstage.training.checkpoint import Checkpoints, Snapshot
from fourstage.training.clock import StageClock
from fourstage.training.contracts import Guard, Source
from fourstage.training.cost import TrainingCost, repeatable
from fourstage.training.guards import NotFinite
from fourstage.training.metrics import Rows, Window
from fourstage.training.progress import Progress
from fourstage.training.schedule import learning_rate
from fourstage.training.settings import TrainSettings
from fourstage.training.signals import StopRequest
from fourstage.training.update import Outcome, Update


@dataclass
class Best:
    """The step with the lowest validation loss so far."""

    step: int
    value: float


@dataclass
class Counts:
    """What has been counted so far."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass
class TrainResult:
    """What training took; the seconds are the stage's wall clock, summed over resumptions."""

    steps: int
    tokens: int
    seconds: float
    flops: float
    best: Best | None
    skipped: int


class Trainer:
    """Trains `module` on `source` for `objective`, in the folder of one stage.

    Args:
        folder: gets checkpoints/, metrics.jsonl, samples.jsonl and seconds.json.
        validate: measures the module; its numbers join the step's row, and the lowest
            `validation_loss` is the best so far.
        sample: step -> rows for samples.jsonl.
        guards: called on the first batch before the first update.
        say: prints a line.
        floor: the best values that exist; that of "loss" is shown beside the loss.
        clock: counts the stage's seconds, where the stage is more than training.
        group: the processes that train together.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        source: Source,
        settings: TrainSettings,
        folder: Path,
        device: torch.device | str = "cpu",
        *,
        validate: Callable[[], Mapping[str, float]] | None = None,
        sample: Callable[[int], list[dict[str, Any]]] | None = None,
        guards: Sequence[Guard] = (),
        say: Callable[[str], None] = print,
        floor: Mapping[str, float] | None = None,
        clock: StageClock | None = None,
        group: Group | None = None,
    ):
        self.device = torch.device(device)
        self.group = group or Group(device=self.device)
        self.module = module.to(self.device)
        self.objective = objective
        self.source = source
        self.settings = settings
        self.folder = Path(folder)
        self.validate = validate
        self.sample = sample
        self.guards = guards
        self.floor = dict(floor or {})
        self.say: Callable[[str], None] = say if self.group.writes else lambda line: None
        self.clock = clock or StageClock(self.folder)
        self.update = Update(self.module, objective, settings, self.device, self.group)
        self.cost = TrainingCost(self.module)
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", settings.keep_checkpoints, self.say
        )
        self.rows = Rows(self.folder / "metrics.jsonl")
        self.samples = Rows(self.folder / "samples.jsonl")
        self.counts = Counts()
        self.window = Window()
        self.best: Best | None = None

    def train(self) -> TrainResult:
        """Trains to the last step, going on from the newest intact checkpoint.

        The module ends with the weights of the last step, or with their moving average.

        Raises:
            Interrupted: a signal came; the step was finished and saved.
            MachineError: the disk is full, or several steps in a row were not finite.
            GuardFailed: the first batch is not what the stage trains on.
        """
        self._resume()
        counts, settings = self.counts, self.settings
        progress = Progress(
            self.folder.name,
            settings.steps,
            counts.step,
            self.say,
            self.floor.get("loss"),
            quiet=not self.group.writes,
        )
        with repeatable(self.device), StopRequest() as stop, progress:
            while counts.step < settings.steps:
                started = time.perf_counter()
                # Whatever draws from the global stream draws by step, not by what ran before.
                torch.manual_seed(seed_for(settings.seed, "step", counts.step))
                batch = self.source.batch(counts.step)
                if counts.step == 0:
                    self._look_first(batch)
                rate = learning_rate(settings, counts.step)
                outcome = self.update(batch, rate)
                self._count(batch, outcome, time.perf_counter() - started)
                progress.advance(counts.step, outcome.loss, batch.cells)
                is_best = self._report(rate)
                stopping = self.group.any(stop.came)
                if stopping or is_best or self._checkpoint_is_due():
                    self._save()
                if stopping:
                    raise Interrupted(
                        f"stopped by {stop.name or 'a signal'} after step {counts.step} of "
                        f"{settings.steps} and saved; run the same command again to go on"
                    )
        return self._finish()

    def _look_first(self, batch: Batch) -> None:
        """Guards and samples before the first update."""
        for guard in self.guards:
            guard(self.module, self.objective, batch)
        if self.settings.sample_every:
            self._write_samples()

    def _count(self, batch: Batch, outcome: Outcome, seconds: float) -> None:
        """Adds a step to the counts and to the next row.

        Raises:
            NotFinite: too many steps in a row were skipped.
        """
        counts, window = self.counts, self.window
        counts.step += 1
        counts.tokens += batch.cells
        counts.flops += self.cost(batch.lengths)
        window.tokens += batch.cells
        window.seconds += seconds
        if outcome.fault:
            self._skip(outcome)
            return
        counts.skipped_in_a_row = 0
        window.add("loss", outcome.loss)
        window.add("gradient_norm", outcome.gradient_norm)
        for name, (total, number) in outcome.metrics.items():
            window.add(name, total, number)

    def _skip(self, outcome: Outcome) -> None:
        counts = self.counts
        counts.skipped += 1
        counts.skipped_in_a_row += 1
        what = f"loss {outcome.loss:.4g}, gradient norm {outcome.gradient_norm:.4g}"
        if counts.skipped_in_a_row < self.settings.most_skipped:
            self.say(f"step {counts.step} was not finite ({what}) and is skipped")
            return
        raise NotFinite(
            f"{counts.skipped_in_a_row} steps in a row were not finite, up to step {counts.step} "
            f"({what}); the first that is not: {outcome.fault}. Lower learning_rate, or look at "
            "the data of these steps; earlier checkpoints are intact"
        )

    def _report(self, rate: float) -> bool:
        """Writes what is due after a step; True when its validation is the best so far."""
        settings, measured = self.settings, {}
        validates = self.validate is not None and self._is_due(settings.validate_every)
        if validates and self.group.writes:
            with self._as_it_would_end():
                measured = dict(self.validate())
        if validates or self.counts.step == 1 or self._is_due(settings.log_every):
            self._write_row(rate, measured)
        if self._is_due(settings.sample_every):
            self._write_samples()
        value = measured.get("validation_loss")
        if value is None or (self.best is not None and not value < self.best.value):
            return False
        self.best = Best(self.counts.step, float(value))
        return True

    def _is_due(self, every: int) -> bool:
        step = self.counts.step
        return every > 0 and (step % every == 0 or step == self.settings.steps)

    def _write_row(self, rate: float, measured: Mapping[str, float]) -> None:
        if not self.group.agrees(self.update.optimiser.parameters):
            raise MachineError(
                f"the processes hold different weights after step {self.counts.step}: "
                "one of them computes wrongly, or their batches differ"
            )
        window, self.window = self.window, Window()
        own = getattr(self.source, "metrics", dict)()
        if not self.group.writes:
            return
        means = window.means()
        row = {
            "step": self.counts.step,
            "loss": means.pop("loss", None),
            "learning_rate": rate,
            "tokens": self.counts.tokens,
            "tokens_per_second": round(window.tokens_per_second, 1),
            "gradient_norm": means.pop("gradient_norm", None),
            "skipped_steps": self.counts.skipped,
        }
        self.rows.append({**row, **means, **own, **measured})
        self.clock.write()

    def _write_samples(self) -> None:
        if self.sample is None or not self.group.writes:
            return
        with self._as_it_would_end():
            rows = self.sample(self.counts.step)
        for row in rows:
            self.samples.append({"step": self.counts.step, **row})

    @contextmanager
    def _as_it_would_end(self) -> Generator[None]:
        """The module as it would be if training ended here: averaged, in evaluation mode."""
        average, was_training = self.update.average, self.module.training
        if average is not None:
            average.swap()
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train(was_training)
            if average is not None:
                average.swap()

    def _checkpoint_is_due(self) -> bool:
        seconds, step = self.settings.checkpoint_seconds, self.counts.step
        by_time = 0 < seconds <= time.monotonic() - self._saved_at
        return (
            by_time or step == self.settings.steps or self._is_due(self.settings.checkpoint_every)
        )

    def _save(self) -> None:
        """Writes everything that the steps to come depend on."""
        if self.group.writes:
            optimiser, average = self.update.optimiser, self.update.average
            tensors = {"model": _weights(self.module), "optimiser": optimiser.state()}
            if average is not None:
                tensors["average"] = average.state(optimiser.names)
            state = {
                "counts": asdict(self.counts),
                "window": self.window.state(),
                "best": asdict(self.best) if self.best else None,
            }
            snapshot = Snapshot(self.counts.step, tensors, state, self.source.state())
            self.checkpoints.save(snapshot, self.best.step if self.best else None)
            self.clock.write(now=True)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        """Goes on from the newest intact checkpoint; rows written after it are cut."""
        found = self.checkpoints.newest() if self.group.writes else None
        step = int(self.group.broadcast_number(found.step if found else -1))
        if step >= 0:
            self._restore(found or self.checkpoints.read(step))
        if self.group.writes:
            self.rows.cut_back(step)
            self.samples.cut_back(step)
        self.group.broadcast(self.update.optimiser.parameters)
        self.module.train()
        self._saved_at = time.monotonic()

    def _restore(self, snapshot: Snapshot) -> None:
        weights, optimiser = _weights(self.module), self.update.optimiser
        saved = snapshot.tensors["model"]
        if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in saved.items()}:
            raise InputError(
                f"{self.checkpoints.path(snapshot.step)} is a checkpoint of another model; "
                f"rename or remove {self.folder} to train this one"
            )
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])
        optimiser.restore(snapshot.tensors.get("optimiser", {}))
        if self.update.average is not None:
            self.update.average.restore(optimiser.names, snapshot.tensors["average"])
        self.counts = Counts(**snapshot.state["counts"])
        self.window = Window.from_state(snapshot.state["window"])
        best = snapshot.state["best"]
        self.best = Best(**best) if best else None
        self.source.restore(snapshot.source)
        if self.counts.step < self.settings.steps:
            self.say(f"going on from step {self.counts.step} of {self.settings.steps}")

    def _finish(self) -> TrainResult:
        if self.update.average is not None:
            self.update.average.swap()
        self.module.eval()
        if self.group.writes:
            self.clock.write(now=True)
        counts = self.counts
        return TrainResult(
            counts.step, counts.tokens, self.clock.seconds, counts.flops, self.best, counts.skipped
        )


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tensor with two names (tied) is there once."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights
