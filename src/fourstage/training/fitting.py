"""The micro-batch that fits: estimated, tried before the first step, halved where it does not.

However a batch is cut, its update is the same within rounding, since counts are those of the whole
batch. So memory decides nothing but speed, and running out of it is no end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fourstage import kernels
from fourstage.adapters.adapting import adapted_layers, quantised_share, trained_share
from fourstage.data.batch import Batch
from fourstage.errors import MachineError
from fourstage.memory import free_bytes, is_out_of_memory, let_go
from fourstage.model.transformer import Transformer
from fourstage.objectives.objective import unsurveyed
from fourstage.parallel.group import Group
from fourstage.planning.memory import Step, own_weights, state_bytes, step_memory
from fourstage.training.choices import Choice, choices, filled, longest
from fourstage.training.compiling import Compilation
from fourstage.training.update import Outcome, Update

# A CPU's micro-batch is not tried where the estimate is below this share of what may be taken: an
# estimate is off by a tenth, and Linux ends a process that takes too much without a word.
_SURELY = 0.5
_KEY = "fitting"


class Measured:
    """What was chosen by measuring: kept in run.json before the first step, read on resuming."""

    def __init__(
        self,
        found: Mapping[str, Any] | None = None,
        keep: Callable[[dict[str, Any]], None] = lambda found: None,
    ):
        self.found = dict(found or {})
        self._keep = keep

    def note(self, **found: Any) -> None:
        if self.found != self.found | found:
            self.found |= found
            self._keep(self.found)


class Fitting:
    """Makes the steps of an update fit the memory.

    Args:
        group: all processes that train together; they take the same choice.
        stage: whose `micro_batch_tokens` a message names.
        say: prints a line.
        most_cells: of any batch of the source, where it knows.
    """

    def __init__(
        self,
        update: Update,
        group: Group,
        stage: str,
        measured: Measured,
        say: Callable[[str], None],
        most_cells: int | None = None,
    ):
        self.update, self.group, self.stage = update, group, stage
        self.measured, self.say, self.most_cells = measured, say, most_cells
        copies = update.passes.replicas
        computing = copies.modules if copies else [update.module]
        self.compilation = Compilation(
            update.settings.compile,
            computing,
            update.device,
            group,
            stage,
            measured,
            say,
        )
        self._models, *others = [
            [part for part in module.modules() if isinstance(part, Transformer)]
            for module in computing
        ]
        self._copies = [model for models in others for model in models]
        self._settings = settings = update.settings
        sizes = update.placement.mesh.sizes
        self._step = Step(
            device=update.device.type,
            replicas=sizes.replicate,
            shards=sizes.shard,
            tensor=sizes.tensor,
            sequence=sizes.sequence,
            workers=settings.workers if update.passes.replicas else 1,
            kernels=update.device.type == "cpu" and kernels.usable(),
            optimiser=settings.optimiser,
            average=settings.ema > 0,
            trained_share=trained_share(update.module),
            has_adapter=bool(adapted_layers(update.module)),
            quantised_share=quantised_share(update.module),
        )
        self._is_settled = False
        self._most = settings.micro_batch_tokens or 0
        self._choice = Choice(self._most)
        self._left: list[Choice] = []

    def _settle(self, batch: Batch) -> None:
        """Compiles, then takes what run.json holds, else the first choice that fits.

        Nothing that a step computes with is changed, random streams included.
        """
        settings, whole = self._settings, longest(batch)
        self.compilation.settle(lambda: self._run(filled(batch, whole), []))
        # Of a trial that failed half-way too.
        self._clear()
        self._most = max(settings.micro_batch_tokens or batch.cells, whole)
        self._left = choices(self._most, whole, settings.recompute)
        noted = self._noted()
        if noted is not None:
            self._left = [choice for choice in self._left if choice.takes_less_than(noted)]
            self._take(noted)
            return
        self._take(self._left.pop(0))
        if settings.tune:
            limit = self._limit()
            self._estimate(batch, limit)
            self._try(batch, limit)
        self._note()

    def __call__(self, batch: Batch, learning_rate: float) -> Outcome:
        """The update; where memory runs out in it, again with the next choice.

        Before the first one, a choice is settled on.

        Raises:
            MachineError: no choice is left, or memory ran out while the weights were changed.
        """
        if not self._is_settled:
            self._settle(unsurveyed(self.update.objective, batch))
            self._is_settled = True
        device = self.update.device
        state = _random_state(device)
        while True:
            applies: list[bool] = []
            try:
                with self._watched(applies):
                    return self.update(batch, learning_rate)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._must_go_on(error, any(applies))
            # Only here, behind the handler, are the tensors of the failed step let go.
            self._clear()
            self._next("out of memory in a step", batch)
            self._note()
            _set_random_state(state, device)

    def _must_go_on(self, error: BaseException, applies: bool) -> None:
        """Refuses to repeat a step that is half done, or that other processes are waiting in."""
        if applies:
            raise MachineError(
                f"{self.stage}: out of memory while the weights were changed ({error}): write "
                f"{self.stage}.optimiser=adamw8bit or a smaller model; the last checkpoint is "
                "intact"
            ) from error
        if self.group.world_size > 1 or not self._settings.tune:
            raise self._alone(error) from error

    @contextlib.contextmanager
    def _watched(self, applies: list[bool]) -> Generator[None]:
        """Gathers whether the update came to the point from which weights change."""
        judge = self.update.accepts

        def accepts(outcome: Outcome) -> bool:
            applies.append(judge(outcome))
            return applies[-1]

        self.update.accepts = accepts
        try:
            yield
        finally:
            self.update.accepts = judge

    # What is taken

    def _noted(self) -> Choice | None:
        """What an earlier process settled on, unless something else is asked for now."""
        found = self.measured.found.get(_KEY, {})
        if found.get("asked") != self._asked():
            return None
        return Choice(int(found["micro_batch_tokens"] or self._most), found["recompute"])

    def _note(self) -> None:
        taken = {
            "micro_batch_tokens": self.update.settings.micro_batch_tokens,
            "recompute": self._choice.recompute,
        }
        self.measured.note(**{_KEY: {"asked": self._asked(), **taken}})

    def _asked(self) -> dict[str, Any]:
        """What a choice holds for."""
        return {
            "micro_batch_tokens": self._settings.micro_batch_tokens,
            "recompute": self._settings.recompute,
            "device": self.update.device.type,
            "processes": self.group.world_size,
        }

    def _take(self, choice: Choice) -> None:
        """Also leaves the setting as it is where the choice is no smaller: None cuts no batch."""
        self._choice, asked = choice, self._settings.micro_batch_tokens
        size = asked if choice.micro_batch_tokens >= self._most else choice.micro_batch_tokens
        self.update.settings = replace(self._settings, micro_batch_tokens=size)
        for model in (*self._models, *self._copies):
            model.recompute = "none" if choice.recompute == "off" else choice.recompute

    def _next(self, why: str, batch: Batch) -> None:
        """Takes the next choice that makes a difference and says so.

        Raises:
            MachineError: none is left.
        """
        before, self._left = self._choice, [
            choice
            for choice in self._left
            if choice.recompute != self._choice.recompute
            or choice.micro_batch_tokens < batch.cells
        ]  # fmt: skip
        if not self._left:
            raise self._too_large(batch)
        self._take(self._left.pop(0))
        self.say(f"{self.stage}: {why} with {before}; going on with {self._choice}")

    def _too_large(self, batch: Batch) -> MachineError:
        what = "pair or group" if "group" in batch.documents else "document"
        size = longest(batch)
        again = "" if self._choice.recompute == "block" else "compute.recompute=block, "
        return MachineError(
            f"{self.stage}: one {what} of {size:,} tokens does not fit the memory of this "
            f"{self.update.device.type} by itself: write {again}model.context={size // 2} or "
            "a smaller model"
        )

    def _alone(self, error: BaseException) -> MachineError:
        """The end of a process whose neighbours wait for it."""
        half = max(1, self._choice.micro_batch_tokens // 2)
        return MachineError(
            f"{self.stage}: out of memory on process {self.group.rank} ({error}): write "
            f"{self.stage}.micro_batch_tokens={half}, or compute.recompute=block"
        )

    # What fits

    def _limit(self) -> float | None:
        """Bytes that a step may take beside what is held now: the same on every process."""
        free = free_bytes(self.update.device)
        least = self.group.lowest(-1.0 if free is None else free)
        return None if least < 0 else self._settings.memory * least

    def _needs(self) -> float:
        """Estimated bytes of a step on full micro-batches, beside what is held before it."""
        choice, there = self._choice, bool(self.update.optimiser.state())
        total = 0.0
        for model in self._models:
            step = replace(
                self._step,
                recompute=choice.recompute,
                accumulates=self._accumulates(),
                scores=model.head == "scalar",
            )
            held = step_memory(model.config, self._cells(), step)
            total += held.total - own_weights(model.config, step)
            total -= state_bytes(model.config, step) if there else 0.0
        return total

    def _estimate(self, batch: Batch, limit: float | None) -> None:
        """Passes over choices that would not fit: a CPU gives more than it has, then ends all.

        Raises:
            MachineError: the last one needs more than all that is free.
        """
        if limit is None or not self._models:
            return
        while (needs := self._needs()) > limit:
            if not self._left and needs <= limit / self._settings.memory:
                return
            self._next(f"{needs / 1e6:,.0f} MB are more than {limit / 1e6:,.0f} MB", batch)

    def _cells(self) -> int:
        """Of the largest micro-batch there can be."""
        return min(self._choice.micro_batch_tokens, self.most_cells or self._most)

    def _accumulates(self) -> bool:
        """Whether a step may be several micro-batches."""
        return self.most_cells is None or self.most_cells > self._choice.micro_batch_tokens

    def _try(self, batch: Batch, limit: float | None) -> None:
        """Runs the largest micro-batch of each choice until one fits."""
        if self.update.device.type == "cpu" and (
            not self._models or limit is None or self._needs() < _SURELY * limit
        ):
            return
        while not self._fits(filled(batch, self._cells())):
            self._next("out of memory in the largest micro-batch", batch)

    def _fits(self, micro: Batch) -> bool:
        """Runs a micro-batch forward and backward, with room held for what a step has beside it.

        Raises:
            MachineError: it does not fit, and the model is shared by processes.
        """
        failed, update, device = False, self.update, self.update.device
        state = _random_state(device)
        try:
            self._run(micro, self._room())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if update.placement.is_split:
                # The others wait in the middle of a pass that they share with this process.
                raise self._alone(error) from error
            failed = True
        _set_random_state(state, device)
        self._clear()
        return not self.group.any(failed)

    def _room(self) -> list[Tensor]:
        """As much memory as the optimiser's state takes, and the gradients where they gather."""
        update, held = self.update, []
        if not update.optimiser.state():
            size = sum(
                state_bytes(model.config, replace(self._step, scores=model.head == "scalar"))
                for model in self._models
            )
            held.append(torch.empty(int(size), dtype=torch.uint8, device=update.device))
        return held + (update.optimiser.gradients() if self._accumulates() else [])

    def _run(self, micro: Batch, room: list[Tensor]) -> None:
        """One pass forward and backward, while `room` is held."""
        counts = self.update.objective.counts(micro)
        self.update.passes(self.update.objective, [(micro, 1.0)], counts)

    def _clear(self) -> None:
        """Lets go of what passes left, and of what the allocator keeps for later."""
        self.update.optimiser.zero_gradients()
        self.update.passes.loads.take()
        let_go(self.update.device)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
