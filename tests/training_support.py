"""A tiny model, a source and an objective for the tests of training."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourstage.data.batch import Batch, Example
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.randomness import numpy_generator
from fourstage.training.contracts import Source
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer

CONFIG = ModelConfig(
    vocab_size=40, width=32, layers=2, heads=2, kv_heads=1, mlp_width=48, context=32
)


def tiny_model(seed: int = 0) -> Transformer:
    return Transformer(CONFIG).initialise(seed)


def tiny_batch(seed: int, step: int, documents: int = 6) -> Batch:
    """Documents of 4 to 12 tokens in which each token is the last one plus a constant."""
    draw = numpy_generator(seed, "tiny", step)
    examples = []
    for _ in range(documents):
        length, first, stride = draw.integers(4, 13), draw.integers(0, 40), draw.integers(1, 4)
        examples.append(Example((first + stride * np.arange(length)) % 40))
    return Batch.language(examples)


class TinySource:
    """Batches as a function of (seed, step); remembers which steps were asked for."""

    def __init__(self, seed: int = 0, pause: float = 0.0):
        self.seed, self.pause = seed, pause
        self.asked: list[int] = []

    def batch(self, step: int) -> Batch:
        self.asked.append(step)
        time.sleep(self.pause)
        return tiny_batch(self.seed, step)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        assert state == {}


class BufferSource(TinySource):
    """Like rollouts: every third step draws a buffer that the steps after it depend on."""

    def __init__(self, seed: int = 0, pause: float = 0.0):
        super().__init__(seed, pause)
        self.buffer: Batch | None = None
        self.coefficient = 0.1
        self.history: list[Any] = []

    def batch(self, step: int) -> Batch:
        self.asked.append(step)
        time.sleep(self.pause)
        if step % 3 == 0:
            drift = float(torch.rand(())) + self.coefficient
            self.coefficient *= 1 + 0.1 * drift
            self.history = [*self.history[-2:], {"step": step, "drift": drift}]
            self.buffer = tiny_batch(self.seed, int(drift * 1e6))
        assert self.buffer is not None
        weights = self.buffer.streams["loss_weights"] * (1 + self.coefficient * (step % 3))
        self.buffer.streams["loss_weights"] = weights
        return self.buffer

    def metrics(self) -> dict[str, float]:
        return {"coefficient": self.coefficient}

    def state(self) -> dict[str, Any]:
        held = None if self.buffer is None else self.buffer.state()
        numbers = np.arange(3, dtype=np.float64) * self.coefficient
        return {"buffer": held, "coefficient": self.coefficient, "history": self.history,
                "numbers": numbers}  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self.buffer = Batch.from_state(state["buffer"]) if state["buffer"] else None
        self.coefficient = state["coefficient"]
        self.history = state["history"]
        assert np.array_equal(state["numbers"], np.arange(3) * self.coefficient)


def settings(**changed: Any) -> TrainSettings:
    values: dict[str, Any] = {"steps": 12, "learning_rate": 3e-3, "log_every": 2, "warmup_steps": 2}
    return TrainSettings(**{**values, **changed})


def trainer(folder: Path, model: Any = None, source: Any = None, **changed: Any) -> Trainer:
    """A trainer on the tiny parts; keywords go to the settings, or to the trainer itself."""
    names = ("validate", "sample", "guards", "say", "floor", "clock", "group", "mesh")
    own = {name: changed.pop(name) for name in names if name in changed}
    own.setdefault("say", lambda line: None)
    objective = changed.pop("objective", None) or NextToken()
    return Trainer(
        model or tiny_model(),
        objective,
        source or TinySource(),
        settings(**changed),
        folder,
        **own,
    )


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Cut(Source):
    """A source that is killed before a step."""

    def __init__(self, inner: Any, at: int):
        self.inner, self.at = inner, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batch(self, step: int) -> Batch:
        if step == self.at:
            raise KeyboardInterrupt
        return self.inner.batch(step)

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.inner.restore(state)


def _updated(folder: Path, made: Any, objective: Any, cut: int | None = None) -> None:
    """Ten updates of the players of a source of rollouts, or those before it is killed."""
    running = trainer(
        folder, made.players.trained, made if cut is None else Cut(made, cut), objective=objective,
        steps=10, log_every=1, warmup_steps=0, checkpoint_every=1, ema=0.9, weight_decay=0.0,
    )  # fmt: skip
    if cut is None:
        running.train()
        return
    with pytest.raises(KeyboardInterrupt):
        running.train()


def whole_and_cut(
    folder: Path, make: Callable[[], Any], objective: Any, cuts: Sequence[int] = (5,)
) -> tuple[Any, Any]:
    """The source of a run that nobody disturbs, and that of one that was killed before each of
    these steps, each made by `make`; their weights end with the same bits."""
    whole = make()
    _updated(folder / "whole", whole, objective)
    for step in cuts:
        _updated(folder / "cut", make(), objective, step)
    resumed = make()
    _updated(folder / "cut", resumed, objective)
    weights = resumed.players.trained.state_dict()
    for name, weight in whole.players.trained.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    return whole, resumed


def train_in_a_process(folder: str, steps: int, pause: float) -> None:
    """What the subprocess of the kill test runs; at the end it writes final.safetensors."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    model = tiny_model()
    running = trainer(
        Path(folder), model, BufferSource(pause=pause), steps=steps, ema=0.9, say=print,
        checkpoint_every=3, checkpoint_seconds=0.05, validate_every=5,
        validate=lambda: {"validation_loss": float(model.model.norm.weight.sum())},
    )  # fmt: skip
    running.train()
    save_file(model.state_dict(), Path(folder) / "final.safetensors")


def train_in_a_group(rank: int, world_size: int, port: int, folder: str) -> None:
    """One of the gloo processes of the data-parallel test."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    group = Group.from_environment("cpu")
    where = Path(folder) if group.writes else Path(folder) / "nothing-is-written-here"
    try:
        running = trainer(where, group=group, steps=8, log_every=1, micro_batch_tokens=20)
        running.checkpoints.folder = Path(folder) / "checkpoints"
        running.train()
    finally:
        group.close()


class KillsItself(TinySource):
    """Sends a signal to its own process while a step is being made."""

    def __init__(self, at: int, number: int = signal.SIGTERM):
        super().__init__()
        self.at, self.number = at, number

    def batch(self, step: int) -> Batch:
        if step == self.at:
            os.kill(os.getpid(), self.number)
        return super().batch(step)
