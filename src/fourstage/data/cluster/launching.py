"""Launches the stages of a job: on this machine, on Slurm or on Ray, through datatrove."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fourstage.data.cluster.job import Job
from fourstage.data.cluster.resources import Resources, usual_tasks
from fourstage.data.cluster.stages import STAGES, Stage
from fourstage.data.corpus import text_size
from fourstage.errors import InputError, MachineError
from fourstage.extras import require

Say = Callable[[str], None]
# A task computes on one core; more of them would only stand in each other's way.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def launch(
    executor: str, job: Job, resources: Resources, say: Say = print, dry_run: bool = False
) -> None:
    """Runs the stages one after the other, or hands them to Slurm; again, it goes on.

    Args:
        executor: "local-datatrove", "slurm" or "ray".
        dry_run: only say what would be launched; scripts for Slurm are written.

    Raises:
        InputError: what the executor needs is missing, or a stage found the data wrong.
        MachineError: some tasks of a stage did not finish.
    """
    if not resources.tasks:
        tasks = usual_tasks(executor, text_size(job.recipe.data))
        resources = dataclasses.replace(resources, tasks=tasks)
    launched = _executors(executor, job, resources)
    if dry_run:
        for stage, each in zip(STAGES, launched, strict=True):
            say(_described(executor, stage, each))
    elif executor == "slurm":
        # The last one launches those it depends on, and each begins when the one before is done.
        launched[-1].run()
        ids = {s.name: each.job_id for s, each in zip(STAGES, launched, strict=True)}
        waiting = ", ".join(f"{name} {number}" for name, number in ids.items() if number != -1)
        say(f"submitted: {waiting}; logs: {_logs(job, resources)}")
    else:
        for stage, each in zip(STAGES, launched, strict=True):
            say(f"{stage.name}: {each.tasks} task{'s' if each.tasks > 1 else ''}")
            each.run()
            _require_finished(stage, each)


def _executors(executor: str, job: Job, resources: Resources) -> list[Any]:
    """datatrove's executor of each stage."""
    require("datatrove", "cluster-data", "to prepare on a cluster")
    from fourstage.data.cluster.steps import StageStep

    make = {"local-datatrove": _local, "slurm": _slurm, "ray": _ray}[executor]
    made: list[Any] = []
    for number, stage in enumerate(STAGES, 1):
        common = {
            "pipeline": [StageStep(stage, job)],
            "tasks": resources.tasks if stage.is_shared else 1,
            "logging_dir": str(_logs(job, resources) / f"{number}-{stage.name}"),
            # The others know by content what is done, and find out where it was lost since.
            "skip_completed": stage.is_shared,
        }
        made.append(make(stage, common, resources, made[-1] if made else None))
    return made


def _logs(job: Job, resources: Resources) -> Path:
    return job.logs(resources.tasks)


def _local(stage: Stage, common: dict[str, Any], resources: Resources, before: Any) -> Any:
    workers = min(common["tasks"], resources.workers or os.cpu_count() or 1)
    return _class("local", "LocalPipelineExecutor")(**common, workers=workers)


def _slurm(stage: Stage, common: dict[str, Any], resources: Resources, before: Any) -> Any:
    if resources.partition is None:
        raise InputError("--executor slurm needs --partition NAME (sinfo lists them)")
    threads = _ONE_THREAD if stage.is_shared else {}
    where = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    return _class("slurm", "SlurmPipelineExecutor")(
        **common,
        time=resources.time,
        partition=resources.partition,
        cpus_per_task=resources.cpus,
        mem_per_cpu_gb=_memory_per_cpu(stage, resources),
        job_name=f"fourstage-{stage.name}",
        qos="",
        env_command=" ".join(["export", where, *(f"{k}={v}" for k, v in threads.items())]),
        sbatch_args=dict(resources.sbatch),
        depends=before,
    )


def _ray(stage: Stage, common: dict[str, Any], resources: Resources, before: Any) -> Any:
    if find_spec("ray") is None:
        raise InputError("ray is needed for --executor ray and not installed: pip install ray")
    threads = {"runtime_env": {"env_vars": _ONE_THREAD}} if stage.is_shared else {}
    return _class("ray", "RayPipelineExecutor")(
        **common,
        time=resources.seconds,
        cpus_per_task=resources.cpus,
        mem_per_cpu_gb=_memory_per_cpu(stage, resources),
        ray_remote_kwargs=threads,
    )


def _class(module: str, name: str) -> Any:
    return getattr(require(f"datatrove.executor.{module}", "cluster-data"), name)


def _memory_per_cpu(stage: Stage, resources: Resources) -> int:
    """GB; what is asked for is never less than what was written."""
    memory = resources.memory if stage.is_shared else resources.judge_memory
    return -(-memory // resources.cpus)


def _described(executor: str, stage: Stage, launched: Any) -> str:
    """What would be launched for a stage."""
    told = f"{stage.name}: {launched.tasks} task(s), logs in {launched.logging_dir.path}"
    if executor != "slurm":
        return told
    jobs = min(launched.tasks, launched.max_array_size)
    pickled = launched.logging_dir.resolve_paths("executor.pik")
    script = launched.get_launch_file_contents(
        launched.get_sbatch_args(jobs), f"srun  -l -n 1 launch_pickled_pipeline {pickled}"
    )
    with launched.logging_dir.open("launch_script.slurm", "w") as file:
        file.write(script)
    return f"{told}\n{script}"


def _require_finished(stage: Stage, launched: Any) -> None:
    """Refuses to go on to the next stage.

    Raises:
        MachineError: a task of this one did not finish.
    """
    missing = launched.get_incomplete_ranks(skip_completed=True)
    if missing:
        raise MachineError(
            f"{stage.name}: {len(missing)} of {launched.tasks} tasks did not finish; see why in "
            f"{launched.logging_dir.path}, and run the same command again to go on"
        )
