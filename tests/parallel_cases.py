"""What the processes of the tests of layouts do: a stage of a tiny model, and what it found."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import nn

from fourstage.cli import app
from fourstage.data.batch import Batch, Example
from fourstage.errors import Interrupted, MachineError
from fourstage.model.actor_critic import ActorCritic
from fourstage.model.config import ModelConfig
from fourstage.model.transformer import Transformer
from fourstage.objectives.bradley_terry import BradleyTerry
from fourstage.objectives.next_token import NextToken
from fourstage.objectives.objective import Objective
from fourstage.parallel import failing
from fourstage.parallel.group import Group
from fourstage.parallel.mesh import Mesh
from fourstage.parallel.sizes import Sizes
from fourstage.randomness import generator, numpy_generator
from fourstage.recipe import RL
from fourstage.stages.judges import Judge
from fourstage.stages.policy import objective_of
from fourstage.training import checkpoint
from fourstage.training.trainer import Trainer
from fourstage.training.update import Outcome
from training_support import TinySource, tiny_batch, trainer

CONFIG = ModelConfig(
    vocab_size=40, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48, context=32
)


class Responses(TinySource):
    """The second half of each document is trained, as in fine-tuning."""

    def batch(self, step: int) -> Batch:
        batch = tiny_batch(self.seed, step)
        middle = torch.tensor(batch.lengths)[batch.document_ids] // 2
        batch.streams["loss_weights"] = (batch.positions >= middle).float()
        return batch


class Pairs(TinySource):
    """Comparisons with a language loss beside them."""

    def batch(self, step: int) -> Batch:
        draw = numpy_generator(self.seed, "pairs", step)
        examples = [
            Example(draw.integers(0, 40, draw.integers(3, 12)), draw.integers(0, 2, 0))
            for _ in range(8)
        ]
        for example in examples:
            example.loss_mask = draw.integers(0, 2, len(example.tokens)).astype(bool)
        return Batch.rows(examples, [number // 2 for number in range(8)])


class Rollouts(TinySource):
    """The streams of PPO, drawn once: what the updates of any layout learn from."""

    def batch(self, step: int) -> Batch:
        batch = tiny_batch(self.seed, step)
        draw = generator(self.seed, "rollouts", step)
        streams = ("old_logprobs", "ref_logprobs", "advantages", "old_values", "returns")
        for name in streams:
            batch.streams[name] = torch.randn(batch.cells, generator=draw) * 0.3
        batch.streams["old_logprobs"] -= 3.6
        gap = torch.randn(batch.cells, generator=draw) * 0.3
        batch.streams["rollout_logprobs"] = batch.streams["old_logprobs"] + gap
        batch.documents["critic_alone"] = torch.full((len(batch.lengths),), float(step < 4))
        return batch


def parts(stage: str, options: dict[str, Any]) -> tuple[nn.Module, Objective, TinySource]:
    """Module, objective and source of a stage, the same on every process."""
    options = dict(options)
    recompute, section = options.pop("recompute", "none"), RL(**options.pop("section", {}))
    model = Transformer(dataclasses.replace(CONFIG, **options)).initialise(0)
    model.recompute = recompute
    if stage == "reward":
        return Judge(model.with_scalar_head(1), model.output_weight), BradleyTerry(
            0.01, 0.5
        ), Pairs()  # fmt: skip
    if stage == "rl":
        critic = model.with_scalar_head(1) if section.needs_critic else None
        return ActorCritic(model, critic), objective_of(section), Rollouts()
    return model, NextToken(), Responses() if stage == "sft" else TinySource()


def running(
    group: Group, folder: str | Path, layout: dict[str, Any], **changed: Any
) -> tuple[Trainer, list[Outcome]]:
    """A trainer on a layout, and the outcomes that its steps will add to."""
    layout = dict(layout)
    stage, options = layout.pop("stage", "pretrain"), layout.pop("model", {})
    changed = {"log_every": 5, **layout.pop("settings", {}), **changed}
    if "steps" in layout:
        changed["steps"] = layout.pop("steps")
    module, objective, source = parts(stage, options)
    mesh = Mesh(group, Sizes(**layout))
    made = trainer(
        Path(folder), module, source, objective=objective, group=group, mesh=mesh, **changed
    )
    outcomes: list[Outcome] = []
    judge = made.update.accepts

    def accepts(outcome: Outcome) -> bool:
        outcomes.append(outcome)
        return judge(outcome)

    made.update.accepts = accepts
    return made, outcomes


def losses(group: Group, folder: str, layouts: dict[str, dict[str, Any]]) -> dict:
    """layout -> loss and gradient norm of each step."""
    found = {}
    for name, layout in layouts.items():
        made, outcomes = running(group, Path(folder) / name, layout)
        made.train()
        found[name] = [[outcome.loss, outcome.gradient_norm] for outcome in outcomes]
    return found


def rolled(group: Group) -> dict[str, Any]:
    """What two iterations draw with rewards that one process asks: numbers, and the rollouts."""
    from test_stages_rollouts import KINDS, source

    made = source(group, **KINDS["groups drawn again"])
    found = []
    for step in (0, made.updates):
        made.batch(step)
        found.append([made.numbers, made.rollouts.documents["scores"].tolist()])
    return {"iterations": found, "tokens": made.rollouts.tokens.tolist()}


def learned(group: Group, folder: str, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """section -> losses of ten steps on own responses, and the tokens that were drawn last."""
    from test_stages_rollouts import source

    found = {}
    for name, section in sections.items():
        made = source(group, **section)
        trains = trainer(
            Path(folder) / name, made.players.trained, made, steps=10, learning_rate=1e-3,
            objective=objective_of(made.section), group=group,
        )  # fmt: skip
        outcomes: list[Outcome] = []
        judge = trains.update.accepts

        def accepts(outcome: Outcome, judge: Any = judge, outcomes: Any = outcomes) -> bool:
            outcomes.append(outcome)
            return judge(outcome)

        trains.update.accepts = accepts
        trains.train()
        found[name] = [[each.loss for each in outcomes], made.rollouts.tokens.tolist()]
    return found


def half_way(group: Group, folder: str, layouts: dict[str, dict[str, Any]]) -> list[str]:
    """Stops each layout by a signal to its last process in step 4 of 8; what was said."""
    said = []
    for name, layout in layouts.items():
        # One process measures, and by its clock another save is due; all save together.
        made, _ = running(
            group, Path(folder) / name, layout, steps=8, ema=0.9, validate_every=1,
            validate=lambda: {"validation_loss": -time.monotonic()},
            checkpoint_seconds=1e-6 if group.writes else 60.0,
        )  # fmt: skip
        draw = made.source.batch

        def batch(step: int, draw: Any = draw) -> Batch:
            if step == 3 and group.rank == group.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(step)

        made.source.batch = batch
        try:
            made.train()
        except Interrupted as stopped:
            said.append(str(stopped))
    return said


def to_the_end(group: Group, folder: str, layouts: dict[str, dict[str, Any]]) -> dict:
    """layout -> what becomes of what stands in its folder: losses, and the weights at the end."""
    found = {}
    for name, layout in layouts.items():
        made, outcomes = running(group, Path(folder) / name, layout, steps=8, ema=0.9)
        result = made.train()
        with made.placement.whole() as module:
            weights = {n: p.detach().double().norm().item() for n, p in module.named_parameters()}
        losses = [outcome.loss for outcome in outcomes]
        found[name] = {"steps": result.steps, "losses": losses, "weights": weights}
    return found


def trained(group: Group, folder: str, layout: dict[str, Any]) -> None:
    """Trains 20 steps, none too fast to be killed in, and writes the weights they end with."""
    made, _ = running(
        group, folder, layout, steps=20, checkpoint_every=2, ema=0.9, log_every=1,
        checkpoint_seconds=0.1,
    )  # fmt: skip
    draw = made.source.batch

    def batch(step: int) -> Batch:
        time.sleep(0.02)
        return draw(step)

    made.source.batch = batch
    made.train()
    with made.placement.whole() as module:
        if group.writes:
            save_file(module.state_dict(), Path(folder) / "final.safetensors")
    group.close()


def training_with_a_fault(
    group: Group, folder: str, layout: dict[str, Any], fault: str
) -> dict[str, Any]:
    """Trains 12 steps, the last process with a fault in the middle: exit code and stderr."""
    made, _ = running(group, folder, layout, steps=12, checkpoint_every=2, keep_checkpoints=9)
    strike(made, group, fault)
    code, told = ended(made.train)
    return {"code": code, "told": told, "steps": made.checkpoints.steps()}


def strike(made: Trainer, group: Group, fault: str) -> None:
    """Makes the last process fail in step 8, or as it writes its part of the checkpoint then."""
    if group.rank != group.world_size - 1:
        return
    draw, save = made.source.batch, checkpoint.save_tensors

    def batch(step: int) -> Batch:
        if step == 7 and fault == "exception":
            raise MachineError("the sensor is on fire")
        if step == 7 and fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(step)

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if "00000008" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, tensors)

    made.source.batch = batch
    if fault == "full disk":
        checkpoint.save_tensors = full


def ended(work: Callable[[], Any]) -> tuple[int, str]:
    """The exit code and the error output of the command line, had it been asked for `work`."""
    told = io.StringIO()
    with (
        mock.patch.object(app, "_dispatch", lambda arguments: work() and 0),
        mock.patch.object(failing, "leave", sys.exit),
        contextlib.redirect_stderr(told),
    ):
        try:
            app.main([])
        except SystemExit as end:
            return int(end.code or 0), told.getvalue()
    raise AssertionError("the command line always exits")


def under_torchrun(folder: str, layout: dict[str, Any]) -> None:
    """What torchrun starts: trains; the last process is killed once, in the middle."""
    torch.set_num_threads(1)
    group = Group.from_environment("cpu")
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    made, _ = running(
        group, folder, layout, steps=12, checkpoint_every=2, say=lambda line: print(line)
    )
    if not restarts and os.environ.get("UNDISTURBED") != "1":
        strike(made, group, "killed")
    made.train()
    with made.placement.whole() as module:
        if group.writes:
            save_file(module.state_dict(), Path(folder) / "final.safetensors")
    group.close()
