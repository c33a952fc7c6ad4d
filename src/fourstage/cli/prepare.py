"""`fourstage prepare`: the data and the tokenizer of a recipe, and nothing trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourstage.cli.running import Out, Overrides, RecipeArgument, Redo, run_folder
from fourstage.errors import InputError, nearest

if TYPE_CHECKING:
    from fourstage.recipe import Recipe

_PARTS = ("tokenizer", "pretrain", "sft", "reward", "rl")
_EXECUTORS = ("local-datatrove", "slurm", "ray")


@dataclass
class _Cluster:
    """Options of an executor, as they were given."""

    executor: str
    tasks: int | None
    partition: str | None
    time: str
    cpus: int
    memory: int
    judge_memory: int
    sbatch: list[str]
    dry_run: bool


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    only: Annotated[str | None, typer.Option(help=f"One of {', '.join(_PARTS)}")] = None,
    redo: Redo = False,
    executor: Annotated[
        str | None,
        typer.Option(help=f"Prepare through datatrove: {', '.join(_EXECUTORS)}; the rest is of it"),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Tasks of the shared stages; else one a GB of text")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Of Slurm")] = None,
    time: Annotated[str, typer.Option(help="Most of a task")] = "24:00:00",
    cpus: Annotated[int, typer.Option(min=1, help="Cores of a task")] = 1,
    memory: Annotated[int, typer.Option(min=1, help="GB of a shared task")] = 4,
    judge_memory: Annotated[int, typer.Option(min=1, help="GB of the others")] = 32,
    sbatch: Annotated[
        list[str] | None, typer.Option(help="More for Slurm, such as account=research")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be launched, and launch nothing")
    ] = False,
) -> None:
    """Prepare the data and the tokenizer of a recipe; a run goes on from what it leaves."""
    if only is not None and only not in _PARTS:
        near = nearest(only, _PARTS)
        raise InputError(f"--only {only}: no such part{near}; write one of {', '.join(_PARTS)}")
    from fourstage.recipe import load

    loaded = load(recipe, overrides or [])
    if only != "tokenizer":
        loaded.require_data(None if only is None else [only])
    folder = run_folder(out, loaded.name)
    if executor is not None:
        told = (tasks, partition, time, cpus, memory, judge_memory, sbatch or [], dry_run)
        _launch(loaded, folder, only, redo, _Cluster(executor, *told))
        return
    if tasks is not None or partition is not None or sbatch or dry_run:
        raise InputError(
            "--tasks, --partition, --sbatch and --dry-run are of an executor: write --executor "
            f"{_EXECUTORS[0]}, {_EXECUTORS[1]} or {_EXECUTORS[2]}, or leave them out"
        )
    from fourstage.pipeline import prepare

    prepare(loaded, folder, only=only, redo=redo)


def _launch(recipe: Recipe, out: Path, only: str | None, redo: bool, given: _Cluster) -> None:
    """Prepares through datatrove.

    Raises:
        InputError: there is no such executor, or an option is not what it takes.
    """
    if given.executor not in _EXECUTORS:
        near = nearest(given.executor, _EXECUTORS)
        one = ", ".join(_EXECUTORS)
        raise InputError(f"--executor {given.executor}: no such executor{near}; write one of {one}")
    from fourstage.data.cluster import Job, Resources, launch
    from fourstage.data.cluster.resources import options_of, usual_tasks
    from fourstage.data.prepare import text_bytes
    from fourstage.pipeline import prepare

    job = Job.of(recipe, out, prepare, only, redo)
    resources = Resources(
        tasks=given.tasks or usual_tasks(given.executor, text_bytes(recipe) or 0),
        workers=recipe.data.workers,
        cpus=given.cpus,
        memory=given.memory,
        judge_memory=given.judge_memory,
        time=given.time,
        partition=given.partition,
        sbatch=options_of(given.sbatch),
    )
    launch(given.executor, job, resources, dry_run=given.dry_run)
