"""How the `rl` stage draws: alone or with an environment, ahead of training, with which engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from fourstage.environments.building import check
from fourstage.errors import InputError
from fourstage.recipe.data import NonNegative, PositiveInt, Section
from fourstage.recipe.numbers import Real, Whole
from fourstage.recipe.preference import draws, learns_otherwise
from fourstage.recipe.rewards import Limit, check_address
from fourstage.recipe.stage import Stage
from fourstage.rewards.importing import split_name

# What a command line gives as text, and means as a number or a truth.
_SCALAR = re.compile(r"(-?\d+(\.\d+)?|true|false)$")

if TYPE_CHECKING:
    from fourstage.recipe.rl import RL


def _of_text(options: dict[str, Any]) -> dict[str, Any]:
    """Numbers and truths, which a command line gives as text, as what they are."""
    return {
        name: yaml.safe_load(value) if isinstance(value, str) and _SCALAR.match(value) else value
        for name, value in options.items()
    }


class EnvironmentSection(Section):
    """What the policy talks to (docs/environments.md).

    Attributes:
        path: of one's own: `module:Class` or `file.py:Class`.
        options: keyword arguments of its class.
        turns: answers of the policy that an episode has at most.
        credit: whether the reward of a `turn` stands at its last token, or the sum of all at the
            last of the `episode`; advantages of whole responses are the same.
        seconds: that a step of one's own environment may take.
        workers: processes that its episodes are dealt to.
        fault_score: the reward of a turn in which it fails.
    """

    kind: Literal["guess", "calculator", "own"]
    path: str | None = None
    options: Annotated[dict[str, Any], AfterValidator(_of_text)] = Field(default_factory=dict)
    turns: PositiveInt = 4
    credit: Literal["turn", "episode"] = "turn"
    seconds: Limit = 60.0
    workers: PositiveInt = 1
    fault_score: Real = -1.0

    @model_validator(mode="after")
    def _is_known(self) -> EnvironmentSection:
        if self.kind == "own" and self.path is None:
            raise ValueError("kind=own needs path: write module:Class or file.py:Class")
        if self.kind != "own" and self.path is not None:
            raise ValueError(f"path={self.path} is of kind=own, not {self.kind}: write kind=own")
        for name in ("seconds", "workers"):
            if self.kind != "own" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of kind=own, not {self.kind}: leave it out")
        try:
            if self.path is not None:
                split_name(self.path, "path")
            check(self.kind, self.options)
        except InputError as error:
            raise ValueError("; ".join(error.faults)) from error
        return self


class EngineSection(Section):
    """What draws in place of the engine here (docs/environments.md).

    Attributes:
        url: of `openai` and `sglang`, where prompts are posted; of `ray`, the address of a cluster.
        update: where the server is told to load weights; without one it keeps those it has.
        model: the name that the server has the model under.
        requests: at a time. seconds: that one may take.
        token_env: the environment variable of a bearer token, which so stands in no recipe.
        actors, gpus: of `ray`, how many and the devices of each.
        memory: of `vllm`, its share of the device's memory.
    """

    kind: Literal["vllm", "openai", "sglang", "ray"]
    url: str | None = None
    update: str | None = None
    model: str | None = None
    requests: PositiveInt = 16
    seconds: Limit = 600.0
    token_env: str | None = None
    actors: PositiveInt = 1
    gpus: NonNegative = 0.0
    memory: Annotated[Real, Field(gt=0, lt=1)] = 0.3

    @model_validator(mode="after")
    def _has_its_own_keys(self) -> EngineSection:
        known = _ENGINE_KEYS[self.kind]
        for name in self.model_fields_set - {"kind", *known}:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is not of kind={self.kind}: leave it out")
        if self.kind in _SERVERS:
            if self.url is None:
                raise ValueError(f"kind={self.kind} needs url: write http://HOST:PORT/PATH")
            check_address("url", self.url)
            if self.update is not None:
                check_address("update", self.update)
        return self


_SERVERS = ("openai", "sglang")
# What gives or watches rewards where no environment does.
_PAYING = ("rewards", "reward_model", "watch_model", "step_rewards")
_OF_SERVERS = ("url", "update", "model", "requests", "seconds", "token_env")
_ENGINE_KEYS = {
    "openai": _OF_SERVERS,
    "sglang": tuple(key for key in _OF_SERVERS if key != "model"),
    "ray": ("url", "actors", "gpus"),
    "vllm": ("memory",),
}


class Rollouts(Stage):
    """The keys of `rl` that say how responses come about.

    Attributes:
        behind: iterations that what draws is behind what is trained: with 1 the next one is drawn
            while this one is trained on.
        rollout_device: where that copy of the policy is; the device of the run unless said.
    """

    behind: Annotated[Whole, Field(ge=0, le=1)] | None = None
    rollout_device: str | None = None
    environment: EnvironmentSection | None = None
    engine: EngineSection | None = None


def faults_of_rollouts(section: RL) -> Iterator[str]:
    """What of these keys does not go together, each with what to write instead."""
    if section.behind and learns_otherwise(section):
        yield (
            f"behind={section.behind} is of policy optimisation (ppo, grpo ...), not "
            f"{section.algorithm}: leave it out"
        )
    if section.rollout_device is not None and not section.behind:
        yield (
            f"rollout_device={section.rollout_device} is of rollouts that are drawn while the "
            "policy is trained: write behind=1, or leave it out"
        )
    yield from _faults_of_engine(section)
    if section.environment is None:
        return
    if learns_otherwise(section):
        yield (
            "environment is of policy optimisation (ppo, grpo ...), and "
            f"{section.algorithm} learns from single answers: leave it out, or write algorithm=grpo"
        )
    for key in (key for key in _PAYING if getattr(section, key)):
        yield f"{key} and environment both give rewards: leave one of the two out"


def _faults_of_engine(section: RL) -> Iterator[str]:
    engine = section.engine
    if engine is None:
        return
    if not draws(section):
        yield f"engine draws responses, and {section.algorithm} draws none: leave it out"
    if engine.kind in _SERVERS and engine.update is None and section.algorithm != "bon":
        yield (
            f"engine.kind={engine.kind} without update would draw from the weights that the server "
            f"began with, and {section.algorithm} draws from the policy in training: write "
            "engine.update=http://HOST:PORT/update_weights_from_disk, or algorithm=bon"
        )
    if section.rollout_device is not None:
        yield "rollout_device is of the engine here: leave it out, or leave engine out"
    if section.adapter is not None:
        yield "engine takes whole weights, and adapter trains updates to them: leave one out"
