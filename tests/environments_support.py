"""A tiny model that plays: it knows the form of the games, and guesses at random."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evaluation_support import model, tokenizer
from fourstage.data.batch import Batch
from fourstage.environments.calculator import Calculator
from fourstage.environments.contracts import Environment
from fourstage.environments.guess import Guess
from fourstage.model.actor_critic import ActorCritic
from fourstage.objectives.next_token import NextToken
from fourstage.parallel.group import Group
from fourstage.recipe import RL
from fourstage.stages.episodes import Players
from fourstage.stages.rollouts import RolloutSource
from fourstage.training.settings import TrainSettings
from fourstage.training.trainer import Trainer
from fourstage.worlds import calibration as world

TASKS = [world.instruction(0, "rl", index) for index in range(20)]
HIGHEST, TURNS = 3, 2
GAME: dict[str, Any] = {"kind": "guess", "options": {"highest": HIGHEST}, "turns": TURNS}
SUMS: dict[str, Any] = {"kind": "calculator", "options": {"digits": 1, "operations": "+"}}


def at_random(game: Environment, answer: Callable[[random.Random, str], str], seed: int):
    """A conversation of random answers."""
    draw = random.Random(seed)
    said = game.reset({"prompt": "", "ground_truth": None, "columns": {}}, seed)
    messages = [{"role": "user", "content": str(said)}]
    for _ in range(TURNS):
        response = answer(draw, messages[-1]["content"])
        messages.append({"role": "assistant", "content": response})
        said, _, done = game.step(response)
        if done:
            break
        messages.append({"role": "user", "content": said})
    return [*messages] if messages[-1]["role"] == "assistant" else messages[:-1]


def guessing(draw: random.Random, said: str) -> str:
    return str(draw.randint(1, HIGHEST))


def calculating(draw: random.Random, said: str) -> str:
    """Calls half of the time, and else answers what it read last, or anything."""
    if "what is" in said:
        return f"<call>{said.split()[2].rstrip('?')}</call>" if draw.random() < 0.5 else "5"
    return said if draw.random() < 0.5 else str(draw.randint(0, 9))


class _Examples:
    depends_on_number_alone = True

    def __init__(self, conversations):
        self.examples = [tokenizer().chat_example(each) for each in conversations]

    def batch(self, step: int) -> Batch:
        count = len(self.examples)
        return Batch.language([self.examples[(32 * step + i) % count] for i in range(32)])

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


@functools.cache
def _weights(kind: str) -> dict[str, torch.Tensor]:
    if kind == "guess":
        games = [at_random(Guess(HIGHEST), guessing, seed) for seed in range(320)]
    else:
        games = [at_random(Calculator(1, "+"), calculating, seed) for seed in range(320)]
    made = model(1)
    settings = TrainSettings(steps=150, learning_rate=1e-2, schedule="cosine", warmup_steps=5)
    with tempfile.TemporaryDirectory() as folder:
        source: Any = _Examples(games)
        said = lambda line: None  # noqa: E731
        Trainer(made, NextToken(), source, settings, Path(folder), say=said).train()
    return {name: weight.detach().clone() for name, weight in made.state_dict().items()}


def player(kind: str = "guess"):
    made = model(1)
    made.load_state_dict(_weights(kind))
    return made.eval()


def section(**more: Any) -> RL:
    told = {
        "algorithm": "grpo", "rollout_batch": 16, "group": 4, "epochs": 1, "minibatches": 2,
        "max_new_tokens": 6, "environment": GAME,
    }  # fmt: skip
    return RL(**(told | more))


def source(processes: Group | None = None, policy=None, **more: Any) -> RolloutSource:
    told = section(**more)
    assert told.environment is not None
    critic = model(3, head="scalar") if told.needs_critic else None
    policy = policy or player(told.environment.kind if told.environment.path is None else "guess")
    reference = player("guess").requires_grad_(False) if told.needs_reference else None
    given = Players(ActorCritic(policy, critic), reference)
    made = RolloutSource(given, tokenizer(), TASKS, told, seed=0, group=processes)
    made.drawer.say = lambda line: None
    return made


def without_reference(given: Players) -> Players:
    return replace(given, reference=None)
