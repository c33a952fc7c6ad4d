"""The training loop of every stage.

    batch -> micro-batches -> sums over global counts -> gradients -> clip -> AdamW

What a step computes is a function of the recipe and the step; how it is cut into micro-batches,
dealt out to processes, interrupted or resumed changes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.batch import Batch
from fourstage.errors import InputError, Interrupted, MachineError
from fourstage.objectives.objective import Objective, unsurveyed
from fourstage.parallel.apply import lay_out
from fourstage.parallel.group import Group
from fourstage.parallel.mesh import Mesh
from fourstage.precision import float8, trains_in_fp8
from fourstage.training.batches import Batches
from fourstage.training.checkpoint import Checkpoints, Snapshot
from fourstage.training.clock import StageClock
from fourstage.training.contracts import Guard, Source
from fourstage.training.cost import TrainingCost, repeatable
from fourstage.training.counts import Best, Counts, TrainResult
from fourstage.training.diagnosis import diagnose
from fourstage.training.events import Unstable, cause_of, react, rollback_row, words
from fourstage.training.fitting import Fitting, Measured
from fourstage.training.guards import weights_are_finite
from fourstage.training.journal import Journal
from fourstage.training.metrics import Window
from fourstage.training.progress import Progress
from fourstage.training.reactions import Stability
from fourstage.training.schedule import learning_rate
from fourstage.training.settings import TrainSettings
from fourstage.training.signals import StopRequest
from fourstage.training.update import Outcome, Update
from fourstage.training.watching import Watch
from fourstage.training.weights import as_it_would_end, fits, put_back, tensors_of


class Trainer:
    """Trains `module` on `source` for `objective`, in the folder of one stage.

    Args:
        folder: gets checkpoints/, metrics.jsonl, watch.jsonl, samples.jsonl and seconds.json.
        validate: measures the module; its numbers join the step's row, and the lowest
            `validation_loss` is the best so far.
        sample: step -> rows for samples.jsonl.
        guards: called on the first batch before the first update.
        say: prints a line.
        floor: the best values that exist; that of "loss" is shown beside the loss.
        clock: counts the stage's seconds, where the stage is more than training.
        group: the processes that train together.
        mesh: how the model lies on them; unless said, each holds all of it.
        measured: what run.json keeps of what is chosen by measuring.
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
        mesh: Mesh | None = None,
        measured: Measured | None = None,
    ):
        self.device = torch.device(device)
        self.group = group or Group(device=self.device)
        self._given = module.to(self.device)
        if trains_in_fp8():
            float8.convert(module)
        self.placement = lay_out(module, mesh or Mesh(self.group))
        self.module = self.placement.module
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
        self.update = Update(
            self.module, objective, settings, self.device, self.group, self.placement
        )
        self.update.accepts = self._accepts
        self.fitting = Fitting(
            self.update,
            self.group,
            self.folder.name,
            measured or Measured(),
            self.say,
            most_cells=getattr(source, "most_cells", None),
        )
        if hasattr(source, "whole"):
            source.whole = self.placement.whole  # ty: ignore[invalid-assignment]
        self.stability = Stability(settings)
        self.batches = Batches(source, settings, self.stability, self.device)
        self.watch = Watch(self.module, self.update.optimiser, settings)
        self.cost = TrainingCost(self.module)
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", settings.keep_checkpoints, self.say, self.placement
        )
        self.journal = Journal(self.folder, self.group.writes)
        self.counts = Counts()
        self.window = Window()
        self.best: Best | None = None
        self._unreported_rate: float | None = None

    def train(self) -> TrainResult:
        """Trains to the last step, going on from the newest intact checkpoint.

        The module ends with the weights of the last step, or with their moving average.

        Raises:
            Interrupted: a signal came; the step was finished and saved.
            MachineError: the disk is full, several steps in a row were not finite, or the run
                spiked again after as many rollbacks as it may take.
            GuardFailed: the first batch is not what the stage trains on.
        """
        self._resume()
        settings = self.settings
        if settings.on_spike == "rollback" and self.counts.step == 0:
            self._save()
        progress = Progress(
            self.folder.name,
            settings.steps,
            self.counts.step,
            self.say,
            self.floor.get("loss"),
            quiet=not self.group.writes,
        )
        with (
            repeatable(self.device),
            StopRequest() as stop,
            progress,
            self.batches,
            closing(self.checkpoints),
            closing(self.fitting.compilation),
        ):
            while self.counts.step < settings.steps:
                self.checkpoints.check()
                started = time.perf_counter()
                batch = self._draw()
                rate = learning_rate(settings, self.counts.step) * self.stability.rate
                before = self.watch.before(self.counts.step + 1)
                outcome = self.fitting(batch, rate)
                if not outcome.applied and self._goes_back(batch, outcome):
                    continue
                self._count(batch, outcome, time.perf_counter() - started)
                if before is not None:
                    self._look(batch, before)
                progress.advance(self.counts.step, outcome.loss, batch.cells)
                if self.group.any(stop.came):
                    # What is due after the step may take longer than is left to save.
                    self._save(unreported_rate=rate)
                    raise Interrupted(
                        f"stopped by {stop.name or 'a signal'} after step {self.counts.step} of "
                        f"{settings.steps} and saved; run the same command again to go on"
                    )
                is_best = self._report(rate)
                if is_best or self._checkpoint_is_due():
                    self._save()
        return self._finish()

    def _draw(self) -> Batch:
        """The batch of the step, and what is due before it."""
        step = self.counts.step
        for rollback in self.stability.left_out_before(step):
            self.journal.event(rollback_row(rollback, step + 1), self.counts)
        batch = self.batches.batch(step)
        if step == 0:
            self._look_first(batch)
        return batch

    def _look_first(self, batch: Batch) -> None:
        """Guards and samples before the first update."""
        trained = unsurveyed(self.objective, batch)
        with self.placement.whole() as module:
            weights_are_finite(module)
            # They compute the same twice: nothing may be dropped out, or rounded otherwise.
            module.eval()
            with float8.as_plain(module) if trains_in_fp8() else nullcontext():
                for guard in self.guards:
                    guard(module, self.objective, trained)
            module.train()
        if self.settings.sample_every:
            self._write_samples()

    def _accepts(self, outcome: Outcome) -> bool:
        """Judges a finite step before its update, which is not applied where it spikes and the
        recipe says so."""
        outcome.spike = self.stability.spike(outcome.loss, outcome.gradient_norm)
        patient = self.counts.skipped_in_a_row < self.settings.most_skipped
        reaction = self.settings.on_spike
        refused = reaction == "rollback" or (reaction == "skip" and patient)
        return not self.group.any(outcome.spike is not None and refused)

    def _goes_back(self, batch: Batch, outcome: Outcome) -> bool:
        """Returns to an earlier step if that is the reaction, and leaves out the batches since.

        The steps from the checkpoint to that step are taken again, with the same bits: what is
        returned to does not depend on when checkpoints were written.

        Raises:
            Unstable: it has gone back as often as it may.
        """
        if self.settings.on_spike != "rollback":
            return False
        spiked = self.counts.step + 1
        cause = self._cause(batch, outcome)
        why = f"step {spiked} {words(outcome, cause)}"
        rollback = self.stability.rollback(spiked, cause)
        if rollback is None:
            raise Unstable(
                f"{why}, after {len(self.stability.rollbacks)} rollbacks: lower learning_rate, or "
                "look at the data of these steps; earlier checkpoints are intact"
            )
        rollbacks = [*self.stability.rollbacks, rollback]
        step = self._return_to(rollback.to_step)
        if step < 0:
            self.say(f"no checkpoint of step {rollback.to_step} or before is intact: stays here")
            return False
        self.stability.rollbacks = rollbacks
        self.say(
            f"{why}; going back to step {rollback.to_step}, and on from there without batches "
            f"{rollback.first} to {rollback.last}"
        )
        if self.group.writes:
            self.checkpoints.drop_after(step)
        self._save()
        return True

    def _count(self, batch: Batch, outcome: Outcome, seconds: float) -> None:
        """Adds a step to the counts and to the next row; tells what is odd about it.

        Raises:
            NotFinite: too many steps in a row were skipped.
        """
        counts, window = self.counts, self.window
        trained = unsurveyed(self.objective, batch)
        counts.step += 1
        counts.tokens += trained.cells
        counts.flops += self.cost(trained.lengths)
        counts.skipped += not outcome.applied
        counts.skipped_in_a_row = 0 if outcome.applied else counts.skipped_in_a_row + 1
        window.tokens += trained.cells
        window.seconds += seconds
        if not outcome.fault:
            self.stability.history.add(outcome.loss, outcome.gradient_norm)
        if outcome.fault or outcome.spike is not None:
            line, row = react(outcome, self._cause(batch, outcome), self.stability, counts)
            if row:
                self.say(line)
                self.journal.event(row, counts)
        if outcome.fault:
            return
        window.add("loss", outcome.loss)
        window.add("gradient_norm", outcome.gradient_norm)
        for name, (total, number) in outcome.metrics.items():
            window.add(name, total, number)

    def _cause(self, batch: Batch, outcome: Outcome) -> dict[str, Any]:
        if not outcome.fault:
            return cause_of(outcome)
        most = self.update.settings.micro_batch_tokens
        return cause_of(outcome, diagnose(self.module, self.objective, batch, self.device, most))

    def _look(self, batch: Batch, before: list[Tensor]) -> None:
        """Adds what is watched to the next row, and each layer's to watch.jsonl."""
        totals, layers = self.watch.after(batch, before)
        for name, value in totals.items():
            self.window.add(name, value)
        self.journal.watched(self.counts.step, layers)

    def _report(self, rate: float) -> bool:
        """Writes what is due after a step; True when its validation is the best so far."""
        settings, measured = self.settings, {}
        validates = self.validate is not None and self._is_due(settings.validate_every)
        if validates:
            with as_it_would_end(self.update):
                measured = dict(self.validate()) if self.group.writes else {}
        if validates or self.counts.step == 1 or self._is_due(settings.log_every):
            self._write_row(rate, measured)
        if self._is_due(settings.sample_every):
            self._write_samples()
        value = measured.get("validation_loss")
        is_best = value is not None and (self.best is None or value < self.best.value)
        if is_best:
            self.best = Best(self.counts.step, float(value))
        # One process has measured, and all save together.
        return validates and self.group.any(is_best)

    def _is_due(self, every: int) -> bool:
        step = self.counts.step
        return every > 0 and (step % every == 0 or step == self.settings.steps)

    def _write_row(self, rate: float, measured: Mapping[str, float]) -> None:
        if not self.placement.agrees(self.update.optimiser.names, self.update.optimiser.parameters):
            raise MachineError(
                f"the processes hold different weights after step {self.counts.step}: "
                "one of them computes wrongly, or their batches differ"
            )
        window, self.window = self.window, Window()
        own = getattr(self.source, "metrics", dict)()
        self.journal.row(self.counts, window, rate, own, measured)
        if self.group.writes:
            self.clock.write()

    def _write_samples(self) -> None:
        if self.sample is None:
            return
        with as_it_would_end(self.update):
            rows = self.sample(self.counts.step) if self.group.writes else []
        self.journal.sampled(self.counts.step, rows)

    def _checkpoint_is_due(self) -> bool:
        seconds, step = self.settings.checkpoint_seconds, self.counts.step
        by_time = 0 < seconds <= time.monotonic() - self._saved_at
        if self.placement.is_split:
            # All save together, by the clock of the one that writes.
            by_time = self.group.any(by_time and self.group.writes)
        return (
            by_time or step == self.settings.steps or self._is_due(self.settings.checkpoint_every)
        )

    def _save(self, unreported_rate: float | None = None) -> None:
        """Writes everything that the steps to come depend on.

        Args:
            unreported_rate: the learning rate of the step, if what is due after it is still to be
                done by who goes on from here.
        """
        # What is due to be dropped depends on what stands on the disk.
        self.checkpoints.wait()
        if self.group.writes or self.placement.is_split:
            state = {
                "counts": asdict(self.counts),
                "window": self.window.state(),
                "best": asdict(self.best) if self.best else None,
                "stability": self.stability.state(),
                "unreported_rate": unreported_rate,
            }
            step, tensors = self.counts.step, tensors_of(self.update)
            snapshot = Snapshot(step, tensors, state, self.source.state())
            best = self.best.step if self.best else None
            needed = self.stability.needed(step, self.checkpoints.steps())
            self.checkpoints.save_soon(snapshot, best, needed)
        if self.group.writes:
            self.clock.write(now=True)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        """Goes on from the newest intact checkpoint; rows written after it are cut."""
        if self._return_to() < 0:
            self.journal.cut_back(0)
        elif self.counts.step < self.settings.steps:
            self.say(f"going on from step {self.counts.step} of {self.settings.steps}")
        self.placement.align(self.update.optimiser.parameters)
        self.module.train()
        self._saved_at = time.monotonic()
        rate, self._unreported_rate = self._unreported_rate, None
        if rate is not None and self._report(rate):
            self._save()

    def _return_to(self, at_most: float = math.inf) -> int:
        """Restores the newest intact checkpoint of step `at_most` or before; its step, -1 if there
        is none, and then nothing has changed."""
        found = self.checkpoints.newest(at_most) if self.group.writes else None
        step = int(self.group.broadcast_number(found.step if found else -1))
        if step >= 0:
            self._restore(self.checkpoints.read(step, is_checked=True))
            self.journal.cut_back(step)
        return step

    def _restore(self, snapshot: Snapshot) -> None:
        if not fits(self.update, snapshot.tensors):
            raise InputError(
                f"{self.checkpoints.path(snapshot.step)} is a checkpoint of another model; "
                f"rename or remove {self.folder} to train this one"
            )
        put_back(self.update, snapshot.tensors)
        self.counts = Counts(**snapshot.state["counts"])
        self.window = Window.from_state(snapshot.state["window"])
        best = snapshot.state["best"]
        self.best = Best(**best) if best else None
        self.stability.restore(snapshot.state.get("stability", {}))
        self._unreported_rate = snapshot.state.get("unreported_rate")
        self.source.restore(snapshot.source)

    def _finish(self) -> TrainResult:
        if self.update.average is not None:
            self.update.average.swap()
        self.placement.restore_whole()
        if trains_in_fp8():
            float8.restore(self._given)
        self.module.eval()
        self.checkpoints.wait()
        if self.group.writes:
            self.clock.write(now=True)
        counts = self.counts
        return TrainResult(
            counts.step, counts.tokens, self.clock.seconds, counts.flops, self.best, counts.skipped
        )
