"""A recipe so small that its four stages take seconds, runs of it, and commands in processes."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fourstage.cli.app import main
from fourstage.files import read_json, sha256_file
from fourstage.pipeline import run
from fourstage.recipe import Recipe, load, recipe_from
from fourstage.recipe.loading import apply_overrides

STAGES = ("pretrain", "sft", "reward", "rl")
EVERY = {"validate_every": 5, "sample_every": 5, "checkpoint_every": 2, "log_every": 1}
TINY: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "data": {
        "pretrain": "world",
        "demonstrations": 200,
        "comparisons": 100,
        "rl_prompts": 64,
    },
    "world": {"documents": 600, "validation_documents": 40},
    "tokenizer": {"vocab_size": 400},
    "model": {"layers": 1, "width": 32, "heads": 2, "context": 192},
    "pretrain": {"steps": 10, "batch_tokens": 960, "learning_rate": 1e-2, **EVERY},
    "sft": {"steps": 6, "batch_tokens": 960, "learning_rate": 5e-3, **EVERY},
    "reward": {"steps": 6, "pairs_per_step": 8, "learning_rate": 1e-3, **EVERY},
    "rl": {
        "steps": 4,
        "rollout_batch": 16,
        "minibatches": 2,
        "learning_rate": 1e-3,
        "max_new_tokens": 16,
        **EVERY,
    },
    "evaluation": {"documents": 20, "instructions": 16, "pairs": 16, "prompts": 16},
}


def tiny(*overrides: str) -> Recipe:
    """The recipe with `key=value` overrides."""
    values = copy.deepcopy(TINY)
    assert not apply_overrides(values, overrides, {})
    return recipe_from(values)


def own_text(folder: Path, *overrides: str) -> Recipe:
    """The recipe on text of one's own."""
    return tiny(f"data.pretrain={folder}", "rl.max_new_tokens=32", *overrides)


def go(recipe: Recipe, out: Path, **options: Any) -> list[str]:
    """Runs a recipe in this process; returns what was said."""
    said: list[str] = []
    with hurried():
        run(recipe, out, say=said.append, **options)
    return said


@contextlib.contextmanager
def hurried() -> Generator[None]:
    """One thread; nothing is flushed to the disk, and the machine's speed is not measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch("os.fsync"), mock.patch("fourstage.pipeline.runner.keep_plan"):
            yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def whole_run(folder: Path) -> Path:
    """A whole run of the recipe below `folder`, made once in a session; to be read only."""
    go(tiny(), folder / "whole" / "tiny")
    return folder / "whole" / "tiny"


def weights(run: Path) -> dict[str, str]:
    """The hash of each stage's model.safetensors."""
    found = {stage: run / stage / "model" / "model.safetensors" for stage in STAGES}
    return {stage: sha256_file(path) for stage, path in found.items() if path.exists()}


def touched(run: Path, stages: Sequence[str] = STAGES) -> dict[str, tuple[int, str]]:
    """Time of change and content of every file of the stages' folders."""
    return {
        path.relative_to(run).as_posix(): (path.stat().st_mtime_ns, sha256_file(path))
        for stage in stages
        for path in sorted((run / stage).rglob("*"))
        if path.is_file()
    }


def folders(run: Path) -> set[str]:
    """Names of the stages' folders, those set aside among them."""
    found = (path.name for path in run.iterdir() if path.is_dir())
    return {name for name in found if name.split(".")[0] in STAGES}


def results(run: Path, stage: str) -> dict[str, Any]:
    return read_json(run / stage / "results.json")


def rows(run: Path, stage: str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / stage / name).read_text().splitlines()]


def told_by_likelihood(folder: Path) -> str:
    """Comparisons that even a chat model of few steps speaks to: it has never read such letters."""
    pairs = [
        {"prompt": f"What is {n}?", "chosen": f"Ann sings {n}.", "rejected": f"~{{^}}@ {n} #|~."}
        for n in range(64)
    ]
    path = folder / "preferences.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return f"data.preferences={path}"


def left_behind(run: Path) -> list[str]:
    """What was being written and is no file of the run."""
    found = (path.relative_to(run).as_posix() for path in run.rglob("*"))
    return [name for name in found if name.endswith((".tmp", ".partial", ".old"))]


def recipe_file(folder: Path, recipe: Recipe | None = None) -> Path:
    path = folder / "tiny.yaml"
    path.write_text((recipe or tiny()).to_yaml())
    return path


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    """`fourstage ...` in a process of its own, its output a pipe of lines."""
    return subprocess.Popen(
        [sys.executable, "-m", "fourstage", *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fourstage ...` in this process."""
    with pytest.raises(SystemExit) as ended, hurried():
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def die_at_writes(recipe: str, out: str, seed: str) -> None:
    """Runs a recipe in forks, each killed before one of its next writes, until one ends.

    Prints how many were killed.
    """
    # Imported once, so that a fork costs nothing.
    import torch._dynamo  # noqa: F401

    import fourstage.pipeline.opening  # noqa: F401

    draw = random.Random(int(seed))
    for kills in range(300):
        process = os.fork()
        if not process:
            die_before_write(draw.randrange(1, 200), out)
            go(load(recipe), Path(out))
            os._exit(0)
        draw.random()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == 0:
            print(kills)
            return
        assert code == -signal.SIGKILL
    raise AssertionError("the run made no way")


def path_changed(event: str, arguments: tuple, changes: tuple[str, ...]) -> object | None:
    """What an audit event is about to change: a file opened for writing, or what `changes` name."""
    if event == "open":
        path, _, flags = arguments
        return path if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) else None
    return arguments[0] if event in changes else None


def die_before_write(number: int, folder: str) -> None:
    """Kills this process before its `number`-th change of a file below `folder`."""
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        path = path_changed(event, arguments, ("os.rename", "os.mkdir", "os.remove", "os.rmdir"))
        if path is None:
            return
        # Below a folder that is being removed, names are relative.
        if str(path).startswith(folder) or not os.path.isabs(str(path)):
            seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
