"""run.json: what each stage was made from, so that a run knows what is finished and unchanged."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fourstage import __version__
from fourstage.errors import InputError
from fourstage.files import read_json, sha256_file, sha256_json, write_json
from fourstage.planning import Derived, model_config, parent_folder
from fourstage.planning.parent import POSITIONS, at_positions
from fourstage.recipe import Recipe
from fourstage.recipe.preference import learns_otherwise

NAME = "run.json"
FORMAT = 1
# Fields of a stage that change how it is worked on, not what comes out.
_WITHOUT_EFFECT = frozenset(
    {
        "micro_batch_tokens",
        "checkpoint_every",
        "checkpoint_seconds",
        "keep_checkpoints",
        "log_every",
        "watch_every",
        "validate_every",
        "sample_every",
        # Which models these are is recorded by their content.
        "from",
        "reward_model",
        "watch_model",
    }
)
# Fields that count where they say something: without them a stage is what it is where they are not
# known, and has the same hash.
_UNSAID = frozenset(
    {
        "adapter",
        "freeze",
        "online",
        "preference",
        "distil",
        "step_rewards",
        "environment",
        "behind",
        "rollout_device",
        "engine",
    }
)
_MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer.json",
    "*.safetensors",
)
_LIBRARIES = ("torch", "tokenizers", "safetensors", "numpy")


def parents_of(stage: str, recipe: Recipe) -> dict[str, str]:
    """role -> stage of the run whose model the stage reads; models from outside are not in it."""
    inside: dict[str, str] = {
        "pretrain": {},
        "sft": {"from": "pretrain"},
        "reward": {"from": "sft"},
        "rl": {"from": "sft", "reward_model": "reward"},
    }[stage]
    outside = outside_models(stage, recipe)
    if stage == "rl" and not recipe.rl.needs_reward_model:
        del inside["reward_model"]
    return {role: name for role, name in inside.items() if role not in outside}


def outside_models(stage: str, recipe: Recipe) -> dict[str, Path]:
    """role -> folder from outside the run, as the recipe names it."""
    section = recipe.stage(stage)
    named = {"from": section.source_model}
    if stage == "rl":
        named |= {"reward_model": recipe.rl.reward_model, "watch_model": recipe.rl.watch_model}
    return {role: Path(folder) for role, folder in named.items() if folder}


def section_hash(recipe: Recipe, stage: str) -> str:
    """Hash of what the resolved recipe says of a stage."""
    section = recipe.to_dict()[stage]
    told = {
        key: value
        for key, value in section.items()
        if key not in _WITHOUT_EFFECT and not (key in _UNSAID and value is None)
    }
    if stage == "pretrain":
        told["model"] = {k: v for k, v in recipe.to_dict()["model"].items() if k != "params"}
    elif (source := recipe.stage(stage).source_model) is not None:
        told |= _moved(recipe, Path(source))
    if stage == "rl" and not learns_otherwise(recipe.rl):
        # What the algorithm's name stands for.
        row = dataclasses.asdict(recipe.rl.row())
        told["row"] = {name: value for name, value in row.items() if name != "source"}
    if stage == "reward":
        # The unit of the reward is that of responses drawn as reinforcement learning draws them.
        told["rl.temperature"] = recipe.rl.temperature
    return sha256_json(told)


def _moved(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The positions that a model from outside gets at the start; nothing where it keeps its own."""
    from fourstage.interchange import load_config

    theirs = load_config(folder)
    ours = at_positions(theirs, model_config(recipe), folder == parent_folder(recipe))
    told = ours.to_json()
    return {} if ours is theirs else {"positions": {name: told[name] for name in POSITIONS}}


def model_hash(folder: Path) -> str:
    """Hash of what a model folder computes: weights, shape and tokenizer, wherever it lies.

    Raises:
        InputError: it is no model folder.
    """
    from fourstage.interchange import peft, read_config

    read_config(folder)
    found = sorted({path for pattern in _MODEL_FILES for path in Path(folder).glob(pattern)})
    hashes = {path.name: sha256_file(path) for path in found}
    if peft.is_adapter(folder):
        hashes["base"] = model_hash(peft.base_folder(folder))
    return sha256_json(hashes)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide a run's bits."""
    found = {"fourstage": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


class Lineage:
    """The record of a run, written whenever something in it changes.

    Attributes:
        content: what run.json holds; nothing in it names where the run stands.
    """

    def __init__(self, run: Path):
        self.path = run / NAME
        self.content: dict[str, Any] = {"format": FORMAT, "stages": {}}
        if self.path.exists():
            self.content = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            content = read_json(self.path)
            known = content["format"] <= FORMAT and isinstance(content["stages"], dict)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path} is unreadable ({error}): restore it, or give another folder "
                "with --out"
            ) from error
        if not known:
            raise InputError(f"{self.path} was written by a later version: update fourstage")
        return content

    def describe(
        self, recipe: Recipe, device: str, processes: int, derived: Iterable[Derived]
    ) -> None:
        """Records what holds for the whole run."""
        self.content |= {
            "name": recipe.name,
            "seed": recipe.seed,
            "device": device,
            "processes": processes,
            "threads": _threads(),
            "versions": versions(),
            "derived": [{"key": d.key, "value": d.value, "rule": d.rule} for d in derived],
        }
        self.write()

    def __getitem__(self, stage: str) -> dict[str, Any]:
        """The record of a stage; empty when it has none."""
        return self.content["stages"].get(stage, {})

    def begin(self, stage: str, inputs: Mapping[str, Any], **more: Any) -> None:
        """Records that a stage is at work on `inputs`; what it noted before is kept when equal."""
        before = self[stage] if self[stage].get("inputs") == inputs else {}
        self.content["stages"][stage] = {
            **before,
            "status": "running",
            "inputs": dict(inputs),
            **more,
        }
        self.write()

    def note(self, stage: str, **more: Any) -> None:
        self.content["stages"][stage] |= more
        self.write()

    def forget(self, stage: str) -> None:
        self.content["stages"].pop(stage, None)
        self.write()

    def write(self) -> None:
        write_json(self.path, self.content)


def _threads() -> int:
    """Threads of matrix products: sums in another number of parts round differently."""
    if "torch" in sys.modules:
        import torch

        return torch.get_num_threads()
    return os.cpu_count() or 1
