"""`fourstage prepare`: the data and the tokenizer of a recipe, and nothing trained."""

from __future__ import annotations

from typing import Annotated

import typer

from fourstage.cli.running import Out, Overrides, RecipeArgument, Redo, run_folder
from fourstage.errors import InputError, nearest

_PARTS = ("tokenizer", "pretrain", "sft", "reward", "rl")
_EXECUTORS = ("local-datatrove", "slurm", "ray")


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
        _require(executor)
        from fourstage.data.cluster import Job, Resources, launch, options_of
        from fourstage.pipeline import prepare

        workers, more = loaded.data.workers, options_of(sbatch or [])
        job = Job.of(loaded, folder, prepare, only, redo)
        resources = Resources(
            tasks or 0, workers, cpus, memory, judge_memory, time, partition, more
        )
        launch(executor, job, resources, dry_run=dry_run)
        return
    if tasks is not None or partition is not None or sbatch or dry_run:
        raise InputError(
            "--tasks, --partition, --sbatch and --dry-run are of an executor: write --executor "
            f"{_EXECUTORS[0]}, {_EXECUTORS[1]} or {_EXECUTORS[2]}, or leave them out"
        )
    from fourstage.pipeline import prepare

    prepare(loaded, folder, only=only, redo=redo)
    if only == "tokenizer":
        from fourstage.reporting.vocabulary import print_run_tokenizer

        print_run_tokenizer(folder, loaded)


def _require(executor: str) -> None:
    """Refuses an executor that does not exist.

    Raises:
        InputError: it does not.
    """
    if executor not in _EXECUTORS:
        near, one = nearest(executor, _EXECUTORS), ", ".join(_EXECUTORS)
        raise InputError(f"--executor {executor}: no such executor{near}; write one of {one}")
