"""Sections of a stopwatch around the parts of a training step, put on and off from outside."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fourstage.data.batch import Batch
from fourstage.model.transformer import Transformer
from fourstage.objectives.objective import Metrics, Objective, Sums
from fourstage.profiling.stopwatch import Stopwatch
from fourstage.training import update
from fourstage.training.checkpoint import Checkpoints
from fourstage.training.contracts import Source

# Names of submodules, as Hugging Face names them -> the part they are.
_MODULES = {"self_attn": "attention", "mlp": "mlp"}
# What the modules' parts are taken from: in rollouts and while activations are made again they
# belong to these.
_FORWARD = ("head_and_loss", "other_forward")
# Until a checkpoint stands on the disk, which steps do not wait for.
WAITED = "checkpoint_waited"
PARTS = (
    "data",
    "attention",
    "mlp",
    "other_forward",
    "head_and_loss",
    "backward",
    "optimiser",
    "rollout",
    "scoring",
    "checkpoint",
    "rest",
)


class WatchedObjective:
    """An objective whose forward pass is timed."""

    def __init__(self, objective: Objective, watch: Stopwatch):
        self.objective, self.watch = objective, watch

    def counts(self, batch: Batch) -> dict[str, float]:
        return self.objective.counts(batch)

    def sums(self, module: Any, micro: Batch) -> tuple[Sums, Metrics]:
        with self.watch.section("head_and_loss"):
            return self.objective.sums(module, micro)


class WatchedSource:
    """A source whose batches are timed; the watch starts with the first behind the warm-up."""

    def __init__(self, source: Source, watch: Stopwatch, warm_up: int):
        self.source, self.watch, self.warm_up = source, watch, warm_up

    def batch(self, step: int) -> Batch:
        if step == self.warm_up:
            self.watch.start()
        with self.watch.section("data"):
            return self.source.batch(step)

    def state(self) -> dict[str, Any]:
        return self.source.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.source.restore(state)


@contextmanager
def instrumented(module: nn.Module, watch: Stopwatch) -> Generator[None]:
    """Times the forward pass of `module` by part, backward passes, updates and checkpoints."""
    with ExitStack() as stack:
        for name, part in module.named_modules():
            section = _MODULES.get(name.rpartition(".")[2])
            if isinstance(part, Transformer):
                section = "other_forward"
            if section:
                for hook in _hooks(part, section, watch):
                    stack.callback(hook.remove)
        for owner, name, section in _calls():
            plain = getattr(owner, name)
            stack.callback(setattr, owner, name, plain)
            setattr(owner, name, _timed(plain, section, watch))
        yield


def _calls() -> Sequence[tuple[Any, str, str]]:
    """What is called once or more a step: its owner, its name, and the part it is."""
    return (
        (torch.autograd, "backward", "backward"),
        (update.Optimiser, "step", "optimiser"),
        (Checkpoints, "save_soon", "checkpoint"),
        (Checkpoints, "wait", WAITED),
    )


def _timed(call: Callable[..., Any], section: str, watch: Stopwatch) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        with watch.section(section):
            return call(*arguments, **options)

    return timed


def _hooks(part: nn.Module, section: str, watch: Stopwatch) -> list[Any]:
    depths: list[int] = []

    def before(*_: Any) -> None:
        depths.append(watch.enter(section) if watch.current in _FORWARD else 0)

    def after(*_: Any) -> None:
        watch.leave(depths.pop())

    return [
        part.register_forward_pre_hook(before),
        part.register_forward_hook(after, always_call=True),
    ]
